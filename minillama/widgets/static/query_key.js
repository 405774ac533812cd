// One head, one query: each key, the products number by number, the sum, the softmax.

const MIDDLE = 11; // the row of pixels that stands for 0
const HIGH = 2 * MIDDLE + 1;

const floats = (text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const signed = (v, digits = 3) => String(Number(v.toPrecision(digits))).replace("-", "−");

function softmax(scores) {
  const most = Math.max(...scores);
  const raised = scores.map((s) => Math.exp(s - most));
  const sum = raised.reduce((a, b) => a + b, 0);
  return raised.map((r) => r / sum);
}

function drawQueryKey({ root, data, tell, onTheme }) {
  const { tokens, width, causal } = data;
  const [q, k] = [floats(data.q), floats(data.k)];
  const of = (rows, i) => rows.subarray(i * width, (i + 1) * width);
  let query = tokens.length - 1;
  let order = "place";
  let at = 0; // the place in the list
  let number = 0; // of the head
  let rows = [];

  const label = (i) => `${i} ${visible(tokens[i])}`;
  const querySlider = slider({
    label: "query", min: 0, max: tokens.length - 1, value: query, show: label,
    input: (v) => { query = v; show(); tell(inWords()); },
  });
  const orderPicker = choice({
    label: "keys", value: order, options: [["place", "in their order"], ["weight", "the weightiest first"]],
    input: (v) => { order = v; show(); tell(inWords()); },
  });
  const strip = () => {
    const canvas = h("canvas", { width, height: HIGH });
    const cursor = h("div", { class: "mll-qk-cursor" });
    return { node: h("div", { class: "mll-qk-strip", "aria-hidden": "true" }, canvas, cursor), canvas, cursor };
  };
  const queryStrip = strip();
  const keys = h("ul", { class: "mll-qk-keys", role: "listbox", "aria-label": "keys" });
  const about = h("p", { class: "mll-note mll-qk-about" });

  /** All that is known of each key that the query sees. */
  function known() {
    const seen = causal ? query + 1 : tokens.length;
    const own = of(q, query);
    const all = Array.from({ length: seen }, (_, key) => {
      const products = of(k, key).map((v, i) => v * own[i]);
      return { key, products, score: products.reduce((a, b) => a + b, 0) / Math.sqrt(width) };
    });
    softmax(all.map((one) => one.score)).forEach((weight, i) => { all[i].weight = weight; });
    return order === "weight" ? all.sort((a, b) => b.weight - a.weight) : all;
  }

  // Made once: only what a query changes is written anew, so that the slider stays quick.
  const lines = tokens.map((_, key) => line(key));

  function show() {
    const before = rows[at]?.key ?? query;
    rows = known().map((row) => Object.assign(row, lines[row.key]));
    at = order === "weight" ? 0 : rows.findIndex((one) => one.key === before);
    if (at < 0) at = rows.length - 1; // the key lies ahead of this query
    rows.forEach(write);
    rows.forEach(({ node }, i) => {
      if (keys.children[i] !== node) keys.insertBefore(node, keys.children[i] ?? null);
    });
    while (keys.children.length > rows.length) keys.lastChild.remove();
    paint();
    mark();
    keys.scrollTop = rows[at].node.offsetTop - keys.offsetTop - keys.clientHeight / 2;
  }

  function line(key) {
    const [left, right] = [strip(), strip()];
    const score = h("span", { class: "mll-qk-number" });
    const bar = h("b", {});
    const share = h("span", {});
    const node = h("li", {
      class: "mll-qk-row", role: "option", tabindex: -1,
      onmousemove: (event) => {
        const box = event.target.closest("canvas")?.getBoundingClientRect();
        go(placeOf(key), box ? Math.floor(((event.clientX - box.left) / box.width) * width) : number);
      },
      onclick: () => node.focus(),
      onfocus: () => go(placeOf(key), number),
    },
    h("span", { class: "mll-qk-name" }, h("small", {}, String(key)), token(tokens[key])),
    left.node, right.node, score,
    h("span", { class: "mll-qk-weight" }, h("i", { "aria-hidden": "true" }, bar), share));
    return { node, left, right, parts: { score, bar, share } };
  }
  const placeOf = (key) => rows.findIndex((row) => row.key === key);

  function write({ key, node, score, weight, parts }) {
    node.setAttribute("aria-label",
      `key ${label(key)}: score ${signed(score)}, weight ${percent(weight)}`);
    parts.score.textContent = score.toFixed(2).replace("-", "−");
    parts.bar.style.width = `${100 * weight}%`;
    parts.share.textContent = percent(weight);
  }

  const largest = (values, least = 0) => values.reduce((m, v) => Math.max(m, Math.abs(v)), least);
  /** Bars from a line in the middle: above 0 upwards, below 0 down, so that the sign
   *  does not hang on the colour. What is not 0 has a pixel at least. */
  function bars(canvas, values, most, { up, down, line }) {
    const pen = canvas.getContext("2d");
    const image = pen.createImageData(width, HIGH);
    const pixels = new Uint32Array(image.data.buffer);
    pixels.fill(line, MIDDLE * width, (MIDDLE + 1) * width);
    for (let i = 0; i < width; i++) {
      const way = Math.sign(values[i]);
      const long = way && Math.max(1, Math.round((MIDDLE * Math.abs(values[i])) / most));
      for (let j = 1; j <= long; j++) pixels[(MIDDLE - way * j) * width + i] = way > 0 ? up : down;
    }
    pen.putImageData(image, 0, 0);
  }
  /** Colours as a canvas takes them, dark or light as the page is. */
  function colours() {
    const dark = isDark(root);
    const packed = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
    return {
      up: packed(diverge(0.66, dark)), down: packed(diverge(-0.66, dark)),
      line: packed(dark ? [140, 140, 140] : [118, 118, 118]),
    };
  }

  /** The keys' strips, which no query changes. */
  function paintKeys() {
    const [most, ink] = [largest(k), colours()];
    lines.forEach((one, key) => bars(one.left.canvas, of(k, key), most, ink));
  }
  function paint() {
    const ink = colours();
    const most = rows.reduce((high, row) => largest(row.products, high), 0);
    bars(queryStrip.canvas, of(q, query), largest(q), ink);
    for (const row of rows) bars(row.right.canvas, row.products, most, ink);
  }

  function mark() {
    const place = { left: `${(100 * number) / width}%`, width: `max(5px, ${100 / width}%)` };
    Object.assign(queryStrip.cursor.style, place);
    for (const { node, left, right } of lines) {
      const here = node === rows[at].node;
      if (!here && node.getAttribute("aria-selected") === "false") continue;
      node.setAttribute("tabindex", here ? 0 : -1);
      node.setAttribute("aria-selected", here);
      for (const one of [left, right]) {
        one.cursor.hidden = !here;
        Object.assign(one.cursor.style, place);
      }
    }
    describe();
  }

  function describe() {
    const { key, products, score, weight } = rows[at];
    const ranked = Array.from(products.keys()).sort((a, b) => products[b] - products[a]);
    const some = (list) => list.map((i) => `${i} (${signed(products[i])})`).join(", ");
    const few = Math.min(3, Math.floor(width / 2));
    about.replaceChildren("query ", token(tokens[query]), ", key ", token(tokens[key]),
      `, number ${number}: `,
      h("b", {}, `${signed(of(q, query)[number])} × ${signed(of(k, key)[number])} = ${signed(products[number])}`),
      `. The sum of ${width} products is ${signed(score * Math.sqrt(width))}; over √${width}: ${signed(score)}; softmax: ${percent(weight)}.`,
      few ? ` Largest products: ${some(ranked.slice(0, few))}; smallest: ${some(ranked.slice(-few).reverse())}.` : "");
  }

  function go(place, which) {
    at = place;
    number = clamp(which, 0, width - 1);
    mark();
  }

  const inWords = () => {
    const top = rows.reduce((best, row) => (row.weight > best.weight ? row : best));
    return `query ${label(query)} looks most at ${label(top.key)}, ${percent(top.weight)}`;
  };

  arrows(keys, (dx, dy) => {
    go(clamp(at + dy, 0, rows.length - 1), clamp(number + dx, 0, width - 1));
    rows[at].node.focus();
    tell(about.textContent);
  });
  keys.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    event.stopPropagation();
    query = rows[at].key;
    querySlider.value = query;
    show();
    rows[at].node.focus();
    tell(inWords());
  });

  root.append(
    h("div", { class: "mll-row" }, querySlider.node, orderPicker.node),
    h("div", { class: "mll-qk-frame" },
      h("div", { class: "mll-qk-row mll-qk-head" }, h("span", {}, "query"), queryStrip.node,
        h("span"), h("span"), h("span")),
      h("div", { class: "mll-qk-row mll-qk-head" }, h("span", {}, "key"), h("span", {}, "its numbers"),
        h("span", {}, "query × key"), h("span", { class: "mll-qk-number" }, `q·k/√${width}`), h("span", {}, "softmax")),
      keys),
    about,
    h("p", { class: "mll-note" },
      "Blue and up: above 0; orange and down: below. Up and down: keys; left and right: the numbers of the head; Enter makes the key the query."));
  show();
  onTheme(() => { paintKeys(); paint(); });
}

export default framed(drawQueryKey);
