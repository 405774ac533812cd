// The logit lens: a grid of layers (upwards) and positions, and the ten of one cell.

const COLUMNS = 32; // more are shown a part at a time, so that each input stays quick

const SHADES = {
  top: {
    name: "probability of the cell's top token",
    share: (cell) => cell.guesses[0][1],
    ends: ["0", "1"],
  },
  truth: {
    name: "probability of the token that really follows",
    share: (cell) => cell.truth ?? 0,
    ends: ["0", "1"],
  },
  rank: {
    name: "rank of the token that really follows",
    share: (cell) => (cell.rank ? (11 - cell.rank) / 10 : 0),
    ends: ["beyond 10", "first"],
  },
};

/** Where the real token stands, as far as the ten can tell: null is beyond them. */
function rankOf(guesses, p) {
  if (p === null || p === undefined) return null;
  const rank = 1 + guesses.filter((guess) => guess[1] > p * 1.0001).length;
  return rank <= guesses.length ? rank : null;
}

function drawLens({ root, data, tell, onTheme }) {
  const { tokens, layers, cells, truth } = data;
  const wide = Math.min(tokens.length, COLUMNS);
  let shade = "top";
  let first = Math.max(0, tokens.length - wide);
  let at = { layer: layers.length - 1, position: tokens.length - 1 };

  const cellAt = (layer, position) => {
    const guesses = cells[layer][position];
    const p = truth?.[layer][position];
    return { layer, position, guesses, truth: p, rank: rankOf(guesses, p) };
  };
  const named = (layer) => (/^\d+$/.test(layers[layer]) ? `layer ${layers[layer]}` : layers[layer]);
  const follows = (position) => tokens[position + 1];
  const isRight = (cell) => (truth ? cell.rank === 1
    : cell.guesses[0][0] === follows(cell.position));

  const pick = choice({
    label: "shade", value: shade,
    options: Object.entries(SHADES)
      .filter(([key]) => truth || key === "top").map(([key, s]) => [key, s.name]),
    input: (key) => { shade = key; paint(); show(at); tell(`shaded by ${SHADES[key].name}`); },
  });
  const legend = h("span", { class: "mll-lens-legend" });
  const part = wide < tokens.length ? slider({
    label: "positions from", min: 0, max: tokens.length - wide, value: first,
    show: (v) => `${v} to ${v + wide - 1} of ${tokens.length}`,
    input: (v) => {
      mark(false);
      first = v;
      at = { ...at, position: clamp(at.position, first, first + wide - 1) };
      fill();
      mark(true);
      show(at);
    },
  }) : null;
  const table = h("table", {
    class: "mll-lens-grid", role: "grid", "aria-label": "top token of each layer and position",
    onmouseleave: () => show(at),
  });
  const scroll = h("div", { class: "mll-lens-scroll" }, table);
  const about = h("div", { class: "mll-lens-about" });

  // The cells are made once and written anew when another part is shown.
  const columns = Array.from({ length: wide }, (_, i) => i);
  const headsOf = () => columns.map(() => h("th", { role: "columnheader" }));
  const above = headsOf();
  const below = headsOf();
  const nodes = layers.map((_, layer) => columns.map((column) => {
    const node = h("td", { role: "gridcell", tabindex: -1, "aria-selected": false }, token(""));
    node.place = () => ({ layer, position: first + column });
    return node;
  }));
  const across = clamp(2 + Math.max(...layers.map((name) => name.length)), 8, 14);
  const line = (tag, name, cells) => h(tag, { role: "rowgroup" },
    h("tr", { role: "row" },
      h("th", { role: "rowheader", style: { width: `${across}ch` } }, name), cells));
  const body = h("tbody", { role: "rowgroup" }, layers.map((name, layer) => h("tr", { role: "row" },
    h("th", { role: "rowheader" }, name), nodes[layer])).reverse());
  // Columns of one width: the browser need not measure all cells anew at each change.
  table.style.width = `calc(${across}ch + ${wide} * 9.5ch)`;
  table.append(line("thead", "follows", above), body, line("tfoot", "read", below));

  /** Write the part that begins at `first`. */
  function fill() {
    for (const column of columns) {
      const position = first + column;
      entitle(above[column], follows(position), position);
      entitle(below[column], tokens[position], position);
      nodes.forEach((row, layer) => {
        const cell = cellAt(layer, position);
        row[column].firstChild.textContent = visible(cell.guesses[0][0]);
        row[column].className = isRight(cell) ? "mll-lens-right" : "";
        row[column].setAttribute("aria-label", inWords(cell));
      });
    }
    paint();
  }
  function entitle(node, text, position) {
    node.replaceChildren(text === undefined ? ""
      : token(text, { title: `${visible(text)}, position ${position}` }));
  }

  function paint() {
    const dark = isDark(root);
    const { share, ends } = SHADES[shade];
    nodes.forEach((row, layer) => row.forEach((node, column) => {
      const t = share(cellAt(layer, first + column));
      const colour = ramp(t, dark);
      node.style.color = inkOn(colour);
      node.style.background = `linear-gradient(currentColor) 0 100% / ${(100 * t).toFixed(1)}% 2px no-repeat ${css(colour)}`;
    }));
    legend.replaceChildren(ends[0],
      ...[0, 0.25, 0.5, 0.75, 1].map((t) => h("i", { style: { background: css(ramp(t, dark)) } })),
      `${ends[1]}; underlined: right`);
  }

  function inWords(cell) {
    const [text, p] = cell.guesses[0];
    const said = `${visible(text)}, ${percent(p)}, ${named(cell.layer)}, after ${visible(tokens[cell.position])}`;
    if (cell.truth === null || cell.truth === undefined) return said;
    return `${said}; really ${visible(follows(cell.position))}, ${percent(cell.truth)}, ${place(cell)}`;
  }
  const place = (cell) => (cell.rank ? `rank ${cell.rank}` : `beyond the first ${cell.guesses.length}`);

  /** The ten of one cell, and the way of the final token up to it. */
  function show({ layer, position }) {
    const cell = cellAt(layer, position);
    const most = cell.guesses[0][1] || 1;
    const rows = cell.guesses.map(([text, p], i) => h("tr", {},
      h("td", {}, String(i + 1)), h("td", {}, token(text)), h("td", {}, percent(p)),
      h("td", {}, h("div", { class: "mll-lens-bar", style: { width: `${(100 * p) / most}%` } }))));
    about.replaceChildren(
      h("h3", {}, `${named(layer)}, position ${position}, after `, token(tokens[position])),
      h("table", { class: "mll-lens-list" }, h("tbody", {}, rows)),
      ...real(cell), way(position));
  }

  function real(cell) {
    const text = follows(cell.position);
    if (text === undefined) return [];
    const known = cell.truth === null || cell.truth === undefined
      ? "" : `: ${percent(cell.truth)}, ${place(cell)}`;
    return [h("p", { class: "mll-note" }, "really follows: ", token(text), known)];
  }

  function way(position) {
    const text = cells[layers.length - 1][position][0][0];
    let seen = layers.length - 1;
    while (seen > 0 && cells[seen - 1][position].some((guess) => guess[0] === text)) seen--;
    let won = layers.length - 1;
    while (won > 0 && cells[won - 1][position][0][0] === text) won--;
    return h("p", { class: "mll-note" }, "The last layer's ", token(text),
      ` stays among the listed from ${named(seen)} on, and first from ${named(won)} on.`);
  }

  function mark(on) {
    const node = nodes[at.layer][at.position - first];
    node.setAttribute("tabindex", on ? 0 : -1);
    node.setAttribute("aria-selected", on);
  }

  function go(layer, position) {
    mark(false);
    if (position < first || position >= first + wide) {
      // Half a part at once: the next steps need no new one.
      first = clamp(position - Math.floor(wide / 2), 0, tokens.length - wide);
      part.value = first;
      fill();
    }
    at = { layer, position };
    mark(true);
    show(at);
  }

  table.addEventListener("mouseover", (event) => {
    const place = event.target.closest("td")?.place?.();
    if (place) show(place);
  });
  table.addEventListener("click", (event) => {
    const place = event.target.closest("td")?.place?.();
    if (place) pin(place.layer, place.position);
  });
  table.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    event.stopPropagation();
    tell(`${cellAt(at.layer, at.position).guesses
      .map(([text, p]) => `${visible(text)} ${percent(p)}`).join(", ")}`);
  });
  function pin(layer, position) {
    go(layer, position);
    nodes[layer][position - first].focus();
  }
  arrows(table, (dx, dy) => pin(
    clamp(at.layer - dy, 0, layers.length - 1), clamp(at.position + dx, 0, tokens.length - 1)));

  root.append(
    h("div", { class: "mll-row" }, pick.node, legend, part?.node),
    h("div", { class: "mll-lens-frame" }, h("div", { class: "mll-lens" }, scroll, about)),
    h("p", { class: "mll-note" },
      "Arrow keys go from cell to cell, Enter reads the ten aloud."));
  fill();
  mark(true);
  show(at);
  requestAnimationFrame(() => { scroll.scrollLeft = scroll.scrollWidth; });
  onTheme(paint);
}

export default framed(drawLens);
