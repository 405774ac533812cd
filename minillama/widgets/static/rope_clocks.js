// RoPE as clocks: two positions under sliders, and the dot product that keeps to m - n.

const TURN = 2 * Math.PI;
const WINDOW = 100; // distances either side in the plot
const degrees = (angle) => `${Math.round(((((angle % TURN) + TURN) % TURN) * 360) / TURN) % 360}°`;
const round4 = (x) => (Math.abs(x) < 5e-5 ? "0.0000" : x.toFixed(4)).replace("-", "−");
const tokensOf = (x) => (x < 100 ? x.toFixed(1) : Math.round(x).toLocaleString("en"));

/** The two numbers of one pair, turned by an angle. */
function turned(vector, pair, angle) {
  const [x, y] = [vector[2 * pair], vector[2 * pair + 1]];
  const [c, s] = [Math.cos(angle), Math.sin(angle)];
  return [x * c - y * s, x * s + y * c];
}

/** What one clock adds to the dot product: both are really turned, then multiplied. */
function part({ q, k }, pair, frequency, m, n) {
  const [a, b] = turned(q, pair, m * frequency);
  const [c, d] = turned(k, pair, n * frequency);
  return a * c + b * d;
}
const dot = (data, frequencies, m, n) => frequencies
  .reduce((sum, frequency, pair) => sum + part(data, pair, frequency, m, n), 0);

function drawClocks({ root, data, tell, onTheme, onResize }) {
  const { frequencies, scaled, longest } = data;
  let [m, n] = data.positions;
  let together = false;
  let chosen = 0;

  const moved = (name, value) => {
    if (name === "m") {
      // Both stay on the sliders, else the distance would change.
      const by = together ? clamp(value - m, -n, longest - n) : value - m;
      m += by;
      if (together) n += by;
    } else {
      const by = together ? clamp(value - n, -m, longest - m) : value - n;
      n += by;
      if (together) m += by;
    }
    mSlider.value = m;
    nSlider.value = n;
    show();
    tell(`m ${m}, n ${n}, difference ${m - n}, dot product ${round4(dot(data, frequencies, m, n))}`);
  };
  const mSlider = slider({ label: "query at m", min: 0, max: longest, value: m, input: (v) => moved("m", v) });
  const nSlider = slider({ label: "key at n", min: 0, max: longest, value: n, input: (v) => moved("n", v) });
  const both = button("move both together", () => {
    together = !together;
    both.setAttribute("aria-pressed", together);
    tell(together ? "m and n move together" : "m and n move alone");
  }, { "aria-pressed": "false" });

  const face = frequencies.length > 16 ? 56 : 88;
  const clocks = frequencies.map((frequency, pair) => clock(frequency, pair));
  const list = h("ul", { class: "mll-clocks", role: "listbox", "aria-label": "clocks, the fastest first" },
    clocks.map((one) => one.node));
  list.style.setProperty("--face", `${face}px`);
  const result = h("p", { class: "mll-clocks-dot" });
  const about = h("p", { class: "mll-note mll-clocks-about" });
  const canvas = h("canvas", { class: "mll-clocks-plot", role: "img" });
  const table = h("tbody", {});

  function hand(kind) { return h("div", { class: `mll-hand ${kind}` }); }
  function clock(frequency, pair) {
    const wedge = h("div", { class: "mll-wedge" });
    const hands = [hand("mll-hand-query"), hand("mll-hand-key")];
    const thin = scaled ? [hand("mll-hand-query mll-hand-thin"), hand("mll-hand-key mll-hand-thin")] : [];
    const node = h("li", {
      class: "mll-clock", role: "option", tabindex: pair ? -1 : 0, "aria-selected": pair === 0,
      onfocus: () => choose(pair), onmouseenter: () => choose(pair),
    }, h("div", { class: "mll-face" }, wedge, ...thin, ...hands),
    h("small", {}, `pair ${pair}`), h("small", {}, tokensOf(TURN / frequency)));
    return { node, wedge, hands, thin };
  }

  function point(node, angle, far) {
    node.style.setProperty("--far", `${far}px`);
    // The middle of the line, not its upper edge, lies on the clock's centre; angles
    // grow against the clock, as in mathematics, and the page's y grows downwards.
    node.style.transform = `rotate(${-angle}rad) translateY(-50%)`;
  }

  function turn() {
    clocks.forEach(({ node, wedge, hands, thin }, pair) => {
      const [a, b] = [m * frequencies[pair], n * frequencies[pair]];
      point(hands[0], a, 0.46 * face);
      point(hands[1], b, 0.36 * face);
      thin.forEach((one, i) => point(one, (i ? n : m) * scaled[pair], 0.5 * face));
      const size = (m - n) * frequencies[pair];
      const open = Math.abs(size) % TURN; // whole turns leave the hands as they are
      const from = Math.PI / 2 - Math.max(a, b);
      wedge.style.background = `conic-gradient(from ${from}rad, var(--mll-line) 0 ${open}rad, transparent 0)`;
      node.setAttribute("aria-label",
        `pair ${pair}, query ${degrees(a)}, key ${degrees(b)}, a turn in ${tokensOf(TURN / frequencies[pair])} tokens`);
    });
  }

  function show() {
    turn();
    const now = dot(data, frequencies, m, n);
    result.replaceChildren("q at m · k at n = ", h("b", {}, round4(now)), `, distance ${String(m - n).replace("-", "−")}`);
    const steps = [[0, "now"], [1, "+1"], [10, "+10"], [1000, "+1,000"]];
    table.replaceChildren(...steps.map(([by, name]) => h("tr", {},
      h("td", {}, name), h("td", {}, String(m + by)), h("td", {}, String(n + by)),
      h("td", {}, round4(dot(data, frequencies, m + by, n + by))),
      scaled && h("td", {}, round4(dot(data, scaled, m + by, n + by))))));
    describe();
    plot();
  }

  function choose(pair) {
    clocks[chosen].node.setAttribute("aria-selected", false);
    chosen = pair;
    clocks[pair].node.setAttribute("aria-selected", true);
    describe();
  }

  function describe() {
    const f = frequencies[chosen];
    const second = scaled && (scaled[chosen] === f ? "; scaled: the same"
      : `; scaled: ${(f / scaled[chosen]).toFixed(2)} times slower, a turn in ${tokensOf(TURN / scaled[chosen])}`);
    about.replaceChildren(
      h("b", {}, `Pair ${chosen}`), ` turns ${f.toPrecision(3)} rad a token, once round in ${tokensOf(TURN / f)} tokens${second ?? ""}. `,
      `Query at ${degrees(m * f)}, key at ${degrees(n * f)}, between them ${degrees((m - n) * f)}. `,
      `It adds ${round4(part(data, chosen, f, m, n))} to the dot product.`);
  }

  /** The dot product against the distance, with the present one marked. */
  function plot() {
    const d = m - n;
    const middle = Math.abs(d) > WINDOW ? d : 0;
    const reach = Math.min(WINDOW, longest);
    const at = Array.from({ length: 2 * reach + 1 }, (_, i) => middle - reach + i);
    const lines = [frequencies, scaled].filter(Boolean)
      .map((set) => at.map((x) => dot(data, set, Math.max(x, 0), Math.max(-x, 0))));
    const width = canvas.clientWidth || 320;
    const height = canvas.clientHeight || 150;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
    const low = Math.min(0, ...lines.flat());
    const high = Math.max(0, ...lines.flat());
    const px = (x) => 6 + ((x - at[0]) / (at.length - 1)) * (width - 12);
    const py = (y) => 8 + ((high - y) / (high - low || 1)) * (height - 32);
    pen.strokeStyle = colour("--mll-line");
    pen.beginPath();
    pen.moveTo(6, py(0));
    pen.lineTo(width - 6, py(0));
    pen.stroke();
    lines.forEach((line, i) => {
      pen.strokeStyle = colour(i ? "--mll-second" : "--mll-accent");
      pen.setLineDash(i ? [5, 3] : []);
      pen.lineWidth = 1.6;
      pen.beginPath();
      line.forEach((y, j) => (j ? pen.lineTo(px(at[j]), py(y)) : pen.moveTo(px(at[j]), py(y))));
      pen.stroke();
    });
    pen.setLineDash([]);
    pen.fillStyle = getComputedStyle(root).color;
    pen.beginPath();
    pen.arc(px(d), py(dot(data, frequencies, m, n)), 4.5, 0, TURN);
    pen.fill();
    pen.font = "12px sans-serif";
    pen.fillText(`distance ${at[0]}`.replace("-", "−"), 6, height - 6);
    pen.textAlign = "center";
    if (middle === 0) pen.fillText("0", px(0), height - 6);
    pen.textAlign = "right";
    pen.fillText(String(at.at(-1)), width - 6, height - 6);
    canvas.setAttribute("aria-label",
      `dot product against the distance m − n, from ${at[0]} to ${at.at(-1)}; now ${d}`);
  }

  arrows(list, (dx, dy) => {
    const across = Math.max(1, getComputedStyle(list).gridTemplateColumns.split(" ").length);
    const to = clamp(chosen + dx + dy * across, 0, clocks.length - 1);
    clocks.forEach((one, i) => one.node.setAttribute("tabindex", i === to ? 0 : -1));
    clocks[to].node.focus();
  });

  const legend = h("p", { class: "mll-clocks-legend" },
    h("span", {}, h("i", { class: "mll-hand" }), "query"),
    h("span", {}, h("i", { class: "mll-hand mll-hand-key" }), "key"),
    scaled && h("span", {}, h("i", { class: "mll-hand mll-hand-thin" }), "thin: scaled"),
    h("span", {}, "shaded: the angle between; below: tokens a turn"));
  const heads = ["both moved", "m", "n", "q·k", scaled && "scaled"].filter((x) => x !== null);
  root.append(
    h("div", { class: "mll-row" }, mSlider.node, nSlider.node, both),
    legend,
    h("div", { class: "mll-clocks-frame" }, h("div", { class: "mll-clocks-two" }, list,
      h("div", {}, result, canvas,
        h("table", { class: "mll-clocks-table" },
          h("thead", {}, h("tr", {}, heads.map((name) => h("th", { scope: "col" }, name)))), table),
        about))));
  show();
  onResize(plot);
  onTheme(plot);
}

export default framed(drawClocks);
