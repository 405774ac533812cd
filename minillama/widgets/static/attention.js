// Attention weights: maps or lines, one head or two, families of heads, all layers.
//
// A token is named by its place among the S keys. The queries are the last T of them.

const LABEL = 12; // pixels that a cell needs before its token is written beside it
const LINE = 20; // height of a token where lines are drawn
const BOX = 440; // height of the box in which they scroll
const KEPT = 96e6; // bytes of decoded layers to keep
const FAINT = 0.02; // weights below it get no line while no token is chosen
const TABLE = 5; // rows in a list of weights

/** The numbers that Python sent, a matrix T x S a head. Eight bits hold a root. */
function spread(sent, { bits, H, T, S, causal }) {
  const raw = sent.buffer.slice(sent.byteOffset, sent.byteOffset + sent.byteLength);
  const packed = bits === 8 ? new Uint8Array(raw) : new Uint16Array(raw);
  const meaning = Float32Array.from({ length: 2 ** bits }, (_, i) => (
    bits === 8 ? (i / 255) ** 2 : i / 65535));
  let at = 0;
  return Array.from({ length: H }, () => {
    const m = new Float32Array(T * S);
    for (let t = 0; t < T; t++) {
      const seen = causal ? S - T + t + 1 : S;
      for (let s = 0; s < seen; s++) m[t * S + s] = meaning[packed[at++]];
    }
    return m;
  });
}

function meanOf(matrices) {
  const sum = new Float32Array(matrices[0].length);
  for (const m of matrices) for (let i = 0; i < sum.length; i++) sum[i] += m[i];
  return sum.map((x) => x / matrices.length);
}

/** Each row without its first key, and again of sum one where anything is left. */
function withoutSink(m, T, S) {
  const out = new Float32Array(m.length);
  for (let t = 0; t < T; t++) {
    let rest = 0;
    for (let s = 1; s < S; s++) rest += m[t * S + s];
    if (rest < 1e-3) continue;
    for (let s = 1; s < S; s++) out[t * S + s] = m[t * S + s] / rest;
  }
  return out;
}

/** What goes to the first token, mean over the queries after it. */
function sinkShare(m, T, S) {
  const first = T === S && T > 1 ? 1 : 0;
  let sum = 0;
  for (let t = first; t < T; t++) sum += m[t * S];
  return sum / (T - first);
}

const NEGATIVE = {
  light: [[255, 255, 255], [253, 190, 133], [217, 95, 14], [110, 40, 2]],
  dark: [[24, 24, 24], [112, 52, 10], [222, 120, 40], [255, 228, 200]],
};

/** Colours as the numbers that a canvas takes, by root of the weight, 0 to 255. */
function palettes(dark) {
  const packed = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  const orange = (t) => {
    const stops = dark ? NEGATIVE.dark : NEGATIVE.light;
    const x = t * (stops.length - 1);
    const i = Math.min(Math.floor(x), stops.length - 2);
    return stops[i].map((a, k) => Math.round(a + (x - i) * (stops[i + 1][k] - a)));
  };
  const table = (colour) => Uint32Array.from({ length: 256 }, (_, i) => packed(colour(i / 255)));
  return {
    more: table((t) => ramp(t, dark)),
    less: table(orange),
    hidden: packed(dark ? [52, 55, 60] : [228, 231, 234]),
  };
}

/** A picture of a matrix, at most `wide` by `high`. Where cells are smaller than pixels
 *  a pixel shows the largest weight in it: thin lines would vanish in a mean. */
function picture(m, T, S, wide, high, colours, causal) {
  const w = clamp(Math.floor(wide), 1, S);
  const n = clamp(Math.floor(high), 1, T);
  const best = new Float32Array(w * n);
  const column = Uint16Array.from({ length: S }, (_, s) => Math.floor((s * w) / S));
  for (let t = 0; t < T; t++) {
    const row = Math.floor((t * n) / T) * w;
    const seen = causal ? S - T + t + 1 : S;
    for (let s = 0; s < seen; s++) {
      const x = m[t * S + s];
      const i = row + column[s];
      if (Math.abs(x) > Math.abs(best[i])) best[i] = x;
    }
  }
  const canvas = h("canvas", { width: w, height: n });
  const ctx = canvas.getContext("2d");
  const image = ctx.createImageData(w, n);
  const out = new Uint32Array(image.data.buffer);
  for (let j = 0; j < n; j++) {
    // The last query of this line of pixels sees the most.
    const seen = causal ? S - T + Math.ceil(((j + 1) * T) / n) - 1 : S;
    const open = causal ? column[Math.min(seen, S - 1)] : w;
    for (let i = 0; i < w; i++) {
      const x = best[j * w + i];
      const shade = Math.min(255, Math.round(255 * Math.sqrt(Math.abs(x))));
      out[j * w + i] = i > open ? colours.hidden : (x < 0 ? colours.less : colours.more)[shade];
    }
  }
  ctx.putImageData(image, 0, 0);
  return canvas;
}

/** A canvas of that size in CSS pixels, sharp on dense screens. */
function sized(canvas, width, height) {
  const dense = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * dense) || canvas.height !== Math.round(height * dense)) {
    canvas.width = Math.round(width * dense);
    canvas.height = Math.round(height * dense);
    Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  }
  const ctx = canvas.getContext("2d");
  ctx.setTransform(dense, 0, 0, dense, 0, 0);
  ctx.clearRect(0, 0, width, height);
  return ctx;
}

/** A text cut to a width. */
function fit(ctx, text, width) {
  if (ctx.measureText(text).width <= width) return text;
  const letters = Array.from(text);
  while (letters.length > 1 && ctx.measureText(`${letters.join("")}…`).width > width) letters.pop();
  return `${letters.join("")}…`;
}

const digits = (x) => x.toFixed(3);
const signed = (x) => `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(3)}`;

function drawAttention({ root, data, ask, get, tell, onResize, onTheme, onLeave, saved }) {
  const { tokens, heads: H, queries: T, causal, layers, families } = data;
  const S = tokens.length;
  const first = S - T; // the first token that has a row
  const bits = saved ? data.saved_bits : 16;
  const shown = tokens.map(visible);
  const state = {
    layer: data.opens, averaged: false, a: String(data.head), b: "", look: "map",
    hide: false, difference: false, query: null, key: null, side: "query", pinned: false,
  };
  let entry = null; // the layer that is shown
  let colours = null;
  let ink = {};
  let width = 0;
  let maps = [];

  // Layers: asked for when wanted, kept while there is room, the next ones beforehand.
  const kept = new Map();
  const room = Math.max(4, Math.floor(KEPT / (4 * H * T * S)));
  let wanted = 0;
  let left = false;
  onLeave(() => { left = true; });

  async function fetchLayer(index, by) {
    if (!kept.has(index)) {
      const answer = await by("layer", { layer: index, bits });
      if (!answer) return null;
      kept.set(index, { heads: spread(answer.buffers[0], { bits, H, T, S, causal }), made: new Map() });
    }
    const found = kept.get(index);
    kept.delete(index); // the last used stands last
    kept.set(index, found);
    for (const old of [...kept.keys()].slice(0, -room)) kept.delete(old);
    return found;
  }

  async function prefetch(mine) {
    const near = [1, -1, 2, -2].map((d) => state.layer + d);
    const all = room > layers.length ? layers.map((_, i) => i).concat(layers.length) : [];
    for (const i of [...near, ...all]) {
      if (left || mine !== wanted) return;
      if (i < 0 || i > layers.length || kept.has(i)) continue;
      try {
        await fetchLayer(i, ask);
      } catch {
        return; // nobody asked yet: the sentence comes when somebody does
      }
    }
  }

  async function go(layer, averaged, spoken = true) {
    const mine = ++wanted;
    const index = averaged ? layers.length : layer;
    const found = kept.has(index) ? kept.get(index) : await fetchLayer(index, get);
    if (mine !== wanted || left) return;
    if (found) {
      entry = found;
      Object.assign(state, { layer, averaged });
      showLayer();
      if (spoken) tell(`${layerName()}, ${share(state.a)}`);
      prefetch(mine);
    }
    // If no answer came the controls say again what is shown.
    layerField.value = state.layer;
    meanLayers.setAttribute("aria-pressed", state.averaged);
  }

  const layerName = () => (state.averaged ? "mean of all layers" : `layer ${layers[state.layer]}`);
  const familySize = families ? H / families : H;
  const members = (id) => (id === "all" ? entry.heads
    : id.startsWith("kv") ? entry.heads.slice(id.slice(2) * familySize, (Number(id.slice(2)) + 1) * familySize)
    : [entry.heads[id]]);
  const headName = (id) => (id === "all" ? "mean of all heads"
    : id.startsWith("kv") ? `mean of KV head ${id.slice(2)}` : `head ${id}`);

  /** The matrix of a head or of a mean, as sent or without the first token. */
  function matrix(id, hide = state.hide) {
    const name = `${id} ${hide}`;
    if (!entry.made.has(name)) {
      const plain = hide ? matrix(id, false) : null;
      const some = hide ? [] : members(id);
      entry.made.set(name, hide ? withoutSink(plain, T, S) : some.length > 1 ? meanOf(some) : some[0]);
    }
    return entry.made.get(name);
  }
  const gap = () => {
    const b = matrix(state.b);
    return matrix(state.a).map((x, i) => x - b[i]);
  };
  const share = (id) => `${headName(id)}, first token takes ${sinkShare(matrix(id, false), T, S).toFixed(2)}`;

  // Controls.
  const ids = [...Array(H).keys()].map(String);
  const means = [...(families && familySize > 1 ? [...Array(families).keys()].map((k) => `kv${k}`) : []), ...(H > 1 ? ["all"] : [])];
  const options = [...ids, ...means].map((id) => [id, headName(id)]);
  const layerField = slider({
    label: "layer", min: 0, max: layers.length - 1, value: state.layer,
    show: (i) => String(layers[i]), input: (i) => go(i, false),
  });
  layerField.field.disabled = layers.length === 1;
  const toggle = (text, flip, props = {}) => {
    const node = button(text, () => flip(node), { "aria-pressed": "false", ...props });
    return node;
  };
  const meanLayers = toggle("mean of layers", () => go(state.layer, !state.averaged),
    { disabled: layers.length === 1 });
  const headField = choice({ label: "head", options, value: state.a, input: (id) => pick("a", id) });
  const otherField = choice({
    label: "compare with", options: [["", "none"], ...options], value: "", input: (id) => pick("b", id),
  });
  const difference = toggle("difference", (node) => {
    state.difference = !state.difference;
    node.setAttribute("aria-pressed", state.difference);
    showHeads();
    tell(state.difference ? "difference shown" : "difference hidden");
  }, { disabled: true });
  const hideSink = toggle("hide first token", (node) => {
    state.hide = !state.hide;
    node.setAttribute("aria-pressed", state.hide);
    showLayer();
    tell(state.hide ? "first token hidden, the rest sums to one again" : "first token shown");
  }, { disabled: S === 1 });
  const looks = ["map", "lines"].map((look) => button(look, () => {
    state.look = look;
    looks.forEach((node, i) => node.setAttribute("aria-pressed", look === ["map", "lines"][i]));
    showHeads();
    tell(`shown as ${look === "map" ? "a map" : "lines"}`);
  }, { "aria-pressed": String(look === "map") }));
  const sideField = choice({
    label: "shade text by", options: [["query", "what a token attends to"], ["key", "what attends to it"]],
    value: "query", input: (side) => { state.side = side; focusOn(swapped(side)); speak(); },
  });
  const swapped = (side) => (side === "query"
    ? { query: state.query ?? state.key, side } : { key: state.key ?? state.query, side });

  function pick(which, id) {
    if (which === "b" && id === state.a) id = "";
    if (which === "a" && id === state.b) state.b = "";
    state[which] = id;
    headField.field.value = state.a;
    otherField.field.value = state.b;
    difference.disabled = !state.b;
    showHeads();
    tell(state.b ? `${share(state.a)}, compared with ${share(state.b)}` : share(state.a));
  }

  // Small multiples: the heads of a layer, those that share a KV head in one frame.
  const minis = ids.map((id) => {
    const canvas = h("canvas", { "aria-hidden": "true" });
    const said = h("span", { class: "mll-att-name" });
    const fill = h("span", {});
    const node = h("button", {
      type: "button", class: "mll-att-head", tabindex: id === state.a ? 0 : -1,
      title: "click: show it. Shift and click: compare it",
      onclick: (event) => pick(event.shiftKey ? "b" : "a", id),
    }, said, canvas, h("span", { class: "mll-att-share", "aria-hidden": "true" }, fill));
    return { id, node, canvas, said, fill };
  });
  const frames = [...Array(families ?? 1).keys()].map((k) => {
    const mine = minis.slice(k * familySize, (k + 1) * familySize);
    const label = families
      ? `KV head ${k}: query head${mine.length > 1 ? "s" : ""} ${mine.map((one) => one.id).join(" ")}`
      : `${H} head${H > 1 ? "s" : ""}`;
    return h("div", { class: "mll-att-family", role: "group", "aria-label": label },
      h("div", { class: "mll-att-label" }, label),
      h("div", { class: "mll-att-heads" }, mine.map((one) => one.node)));
  });
  const family = h("div", { class: "mll-att-families" }, frames);
  arrows(family, (dx, dy) => {
    const at = minis.findIndex((one) => one.node === document.activeElement);
    const to = minis[clamp(at + clamp(dx, -H, H) + clamp(dy, -1, 1) * familySize, 0, H - 1)];
    minis.forEach((one) => { one.node.tabIndex = one === to ? 0 : -1; });
    to.node.focus();
  });

  function showMinis() {
    // As many frames in a line as fit, then maps as large as fill it.
    const wish = Math.min(familySize, 8);
    const across = clamp(Math.floor(width / (wish * (H > 16 ? 58 : 72) + 24)), 1, frames.length);
    const size = clamp(Math.floor((width - across * 24) / (across * wish)) - 10, 50, 104);
    const high = clamp((size * T) / S, Math.min(size, 12), size);
    const dense = window.devicePixelRatio || 1;
    for (const { id, node, canvas, said, fill } of minis) {
      const ctx = sized(canvas, size, high);
      ctx.imageSmoothingEnabled = false;
      ctx.drawImage(picture(matrix(id), T, S, size * dense, high * dense, colours, causal), 0, 0, size, high);
      const part = sinkShare(matrix(id, false), T, S);
      said.replaceChildren(`${id}`, h("small", {}, `${size < 70 ? "" : "sink "}${part.toFixed(2)}`));
      fill.style.width = `${100 * part}%`;
      const role = id === state.a ? "a" : id === state.b ? "b" : "";
      node.className = `mll-att-head ${role && `mll-att-${role}`}`;
      node.dataset.role = role;
      node.setAttribute("aria-pressed", Boolean(role));
      node.setAttribute("aria-label",
        `head ${id}, sink ${part.toFixed(2)}${role === "b" ? ", compared" : role ? ", shown" : ""}`);
    }
  }

  // The chosen heads, large: a panel each, and one for the difference.
  const panels = h("div", { class: "mll-att-panels" });
  const cell = h("p", { class: "mll-att-cell" });
  const lists = h("div", { class: "mll-att-lists" });
  const side = h("div", { class: "mll-att-side" }, cell, lists);

  function panel(name, id, note) {
    const canvas = h("canvas", {
      tabindex: 0, role: "application", "aria-label": "",
      onmousemove: (event) => !state.pinned && focusOn(at(event)),
      onmouseleave: () => !state.pinned && focusOn({ query: null, key: null }),
      onclick: (event) => pin(at(event)),
    });
    const box = h("div", { class: "mll-att-box", onscroll: () => one.paint() }, canvas);
    const node = h("figure", { class: `mll-att-panel mll-att-panel-${name}` },
      h("figcaption", {}, note), box);
    const one = { name, id, node, canvas, box, m: null, paint: () => {}, place: () => ({}) };
    const at = (event) => {
      const frame = canvas.getBoundingClientRect();
      return one.place(event.clientX - frame.left, event.clientY - frame.top);
    };
    arrows(canvas, (dx, dy) => step(dx, dy));
    return one;
  }

  function showHeads() {
    if (!entry || !width) return;
    showMinis();
    const held = maps.findIndex((one) => one.canvas === document.activeElement);
    const caption = (id, mark) => h("span", {}, mark && h("b", {}, `${mark}: `), `${layerName()}, ${share(id)}`);
    maps = [panel("a", state.a, caption(state.a, state.b && "a"))];
    if (state.b) maps.push(panel("b", state.b, caption(state.b, "b")));
    if (state.b && state.difference) {
      maps.push(panel("difference", null, h("span", {}, h("b", {}, "a − b: "),
        h("span", { class: "mll-att-plus" }, "a looks more"), " ",
        h("span", { class: "mll-att-minus" }, state.look === "map" ? "b looks more" : "b looks more (dashed)"))));
    }
    const beside = width >= 720 && maps.length === 1;
    const inner = beside ? width - 330 : width;
    const columns = Math.max(1, Math.min(maps.length, Math.floor(inner / 270)));
    const wide = Math.floor(clamp((inner - 12 * (columns - 1)) / columns, 180, 560));
    for (const one of maps) {
      one.m = one.id === null ? gap() : matrix(one.id);
      const what = one.id === null ? `${headName(state.a)} minus ${headName(state.b)}` : headName(one.id);
      one.canvas.setAttribute("aria-label",
        `${state.look === "map" ? "map" : "lines"} of ${what}: arrow keys choose tokens, Enter pins, Escape frees`);
      (state.look === "map" ? asMap : asLines)(one, wide);
    }
    panels.replaceChildren(...maps.map((one) => one.node));
    body.classList.toggle("mll-att-beside", beside);
    if (held >= 0) maps[Math.min(held, maps.length - 1)].canvas.focus();
    focusOn({});
  }

  const showLayer = showHeads;

  function asMap(one, wide) {
    const ctx = sized(one.canvas, wide, 10);
    ctx.font = ink.font;
    const longest = Math.min(96, Math.max(...shown.slice(0, 64).map((text) => ctx.measureText(text).width)) + 12);
    const labelled = (wide - longest - 2) / S >= LABEL;
    const x0 = labelled ? longest : 30;
    const y0 = labelled ? longest + 12 : 30;
    const w = wide - x0 - 2;
    const tall = clamp((w * T) / S, Math.min(T * 22, w), w);
    const image = picture(one.m, T, S, w * 2, tall * 2, colours, causal);
    const cw = w / S;
    const ch = tall / T;
    one.place = (x, y) => ({
      query: first + clamp(Math.floor((y - y0) / ch), 0, T - 1),
      key: clamp(Math.floor((x - x0) / cw), 0, S - 1),
    });
    one.paint = () => {
      const ctx = sized(one.canvas, wide, y0 + tall + 2);
      ctx.imageSmoothingEnabled = false;
      ctx.drawImage(image, x0, y0, w, tall);
      ctx.strokeStyle = ink.line;
      ctx.lineWidth = 1;
      ctx.strokeRect(x0 - 0.5, y0 - 0.5, w + 1, tall + 1);
      if (labelled) mapLabels(ctx, x0, y0, cw, ch);
      else mapTicks(ctx, x0, y0, cw, ch);
      markSink(ctx, x0, y0, cw, tall);
      const bold = state.pinned ? 3 : 1.5;
      const row = state.query === null ? -1 : state.query - first;
      ctx.lineWidth = bold;
      if (row >= 0) {
        ctx.strokeStyle = ink.accent;
        ctx.strokeRect(x0, y0 + row * ch, w, Math.max(ch, 2));
      }
      if (state.key !== null) {
        ctx.strokeStyle = ink.second;
        ctx.strokeRect(x0 + state.key * cw, y0, Math.max(cw, 2), tall);
      }
      if (row >= 0 && state.key !== null && ch < 7 && T > 30) lens(ctx, one, row, x0, y0, w);
    };
  }

  function mapLabels(ctx, x0, y0, cw, ch) {
    ctx.font = ink.font;
    ctx.textBaseline = "middle";
    for (let i = 0; i < T; i++) {
      ctx.textAlign = "right";
      ctx.fillStyle = state.query === first + i ? ink.accent : ink.text;
      ctx.fillText(fit(ctx, shown[first + i], x0 - 8), x0 - 5, y0 + (i + 0.5) * ch);
    }
    ctx.textAlign = "left";
    for (let j = 0; j < S; j++) {
      ctx.save();
      ctx.translate(x0 + (j + 0.5) * cw, y0 - 14);
      ctx.rotate(-Math.PI / 2);
      ctx.fillStyle = state.key === j ? ink.second : ink.text;
      ctx.fillText(fit(ctx, shown[j], y0 - 16), 0, 0);
      ctx.restore();
    }
  }

  /** Where tokens are too many to be written their places are counted. */
  function mapTicks(ctx, x0, y0, cw, ch) {
    ctx.font = ink.small;
    ctx.fillStyle = ink.text;
    const every = [8, 16, 32, 64, 128, 256].find((n) => n * cw >= 34) ?? 512;
    for (let i = 0; i < S; i += every) {
      ctx.textBaseline = "bottom";
      ctx.textAlign = i ? "center" : "left";
      if (i) ctx.fillText(i, x0 + i * cw, y0 - 4);
      ctx.textBaseline = "middle";
      ctx.textAlign = "right";
      if (i >= first) ctx.fillText(i, x0 - 4, y0 + (i - first + 0.5) * ch);
    }
  }

  /** A triangle over the first column, and dashes around it. */
  function markSink(ctx, x0, y0, cw, tall) {
    const x = x0 + Math.min(cw, 12) / 2;
    ctx.fillStyle = state.hide ? ink.line : ink.second;
    ctx.beginPath();
    ctx.moveTo(x - 5, y0 - 11);
    ctx.lineTo(x + 5, y0 - 11);
    ctx.lineTo(x, y0 - 3);
    ctx.fill();
    ctx.strokeStyle = ctx.fillStyle;
    ctx.lineWidth = 1;
    ctx.setLineDash([3, 3]);
    ctx.strokeRect(x0 + 0.5, y0 + 0.5, Math.max(cw, 3), tall - 1);
    ctx.setLineDash([]);
  }

  /** The cells around the chosen one, enlarged, in a corner: the mask leaves it empty. */
  function lens(ctx, one, row, x0, y0, w) {
    const half = 7;
    const n = 2 * half + 1;
    const size = Math.floor((w * 0.42) / n) * n;
    const c = size / n;
    const left0 = causal || state.key < S / 2 ? x0 + w - size - 4 : x0 + 4;
    const i0 = clamp(row - half, 0, T - n);
    const j0 = clamp(state.key - half, 0, S - n);
    const part = new Float32Array(n * n);
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) part[i * n + j] = one.m[(i0 + i) * S + j0 + j];
    ctx.imageSmoothingEnabled = false;
    ctx.drawImage(picture(part, n, n, n, n, colours, false), left0, y0 + 4, size, size);
    ctx.lineWidth = 1.5;
    ctx.strokeStyle = ink.text;
    ctx.strokeRect(left0, y0 + 4, size, size);
    ctx.strokeStyle = ink.accent;
    ctx.strokeRect(left0, y0 + 4 + (row - i0) * c, size, c);
    ctx.strokeStyle = ink.second;
    ctx.strokeRect(left0 + (state.key - j0) * c, y0 + 4, c, size);
  }

  // Lines between queries on the left and keys on the right.
  function asLines(one, wide) {
    const tall = S * LINE + 8;
    const high = Math.min(tall, BOX);
    const margin = Math.floor(Math.min(120, wide * 0.3));
    const scrolls = tall > BOX;
    const inner = wide - (scrolls ? 16 : 0);
    one.box.classList.add("mll-att-scroll");
    Object.assign(one.box.style, { height: `${high}px`, width: `${wide}px` });
    one.box.append(h("div", { style: { height: `${tall - high}px` } }));
    const y = (token) => 4 + (token + 0.5) * LINE - one.box.scrollTop;
    const onPaper = (token) => y(token) > -LINE && y(token) < high + LINE;
    one.place = (px, py) => {
      const token = clamp(Math.floor((py - 4 + one.box.scrollTop) / LINE), 0, S - 1);
      return px > inner / 2 ? { query: null, key: token, side: "key" }
        : { query: Math.max(token, first), key: null, side: "query" };
    };
    one.reveal = (token) => {
      if (y(token) < LINE) one.box.scrollTop += y(token) - LINE;
      if (y(token) > high - LINE) one.box.scrollTop += y(token) - high + LINE;
    };
    one.paint = () => {
      const ctx = sized(one.canvas, inner, high);
      ctx.lineCap = "round";
      const line = (query, key) => {
        const x = one.m[(query - first) * S + key];
        const size = Math.abs(x);
        ctx.strokeStyle = x < 0 || one.name === "b" ? ink.second : ink.accent;
        ctx.globalAlpha = clamp(0.12 + size, 0, 1);
        ctx.lineWidth = 0.5 + 6 * size;
        ctx.setLineDash(x < 0 ? [6, 8] : []);
        ctx.beginPath();
        ctx.moveTo(margin + 6, y(query));
        ctx.lineTo(inner - margin - 6, y(key));
        ctx.stroke();
      };
      const weight = (query, key) => Math.abs(one.m[(query - first) * S + key]);
      const { query, key } = state;
      const least = query === null && key === null ? FAINT : 0.002;
      for (let q = first; q < S; q++) {
        if (query !== null ? q !== query : key === null && !onPaper(q)) continue;
        for (let k = 0; k < S; k++) {
          if (query === null && key !== null && k !== key) continue;
          if (weight(q, k) >= least) line(q, k);
        }
      }
      ctx.globalAlpha = 1;
      ctx.setLineDash([]);
      lineLabels(ctx, one, margin, inner, y, onPaper);
    };
  }

  function lineLabels(ctx, one, margin, inner, y, onPaper) {
    ctx.font = ink.font;
    ctx.textBaseline = "middle";
    for (let token = 0; token < S; token++) {
      if (!onPaper(token)) continue;
      const row = state.query === null ? null : one.m[(state.query - first) * S + token];
      const column = state.key === null || token < first ? null : one.m[(token - first) * S + state.key];
      const text = shown[token];
      if (token >= first) {
        const seen = state.query === null && column !== null ? Math.abs(column) : 0;
        lineLabel(ctx, text, 0, margin, y(token), state.query === token, seen, "right");
      }
      const seen = row !== null ? Math.abs(row) : 0;
      lineLabel(ctx, text, inner - margin, margin, y(token), state.key === token, seen, "left");
    }
    if (!onPaper(0)) return;
    ctx.fillStyle = state.hide ? ink.line : ink.second;
    ctx.beginPath();
    ctx.moveTo(inner - margin - 9, y(0) - 5);
    ctx.lineTo(inner - margin - 9, y(0) + 5);
    ctx.lineTo(inner - margin - 2, y(0));
    ctx.fill();
  }

  function lineLabel(ctx, text, x, margin, y, chosen, seen, align) {
    if (seen > 0.002) {
      const shade = ramp(Math.sqrt(seen), ink.dark);
      ctx.fillStyle = css(shade);
      ctx.fillRect(x, y - LINE / 2 + 1, margin, LINE - 2);
      ctx.fillStyle = inkOn(shade);
    } else {
      ctx.fillStyle = ink.text;
    }
    ctx.textAlign = align;
    ctx.fillText(fit(ctx, text, margin - 8), align === "right" ? x + margin - 4 : x + 4, y);
    if (!chosen) return;
    ctx.strokeStyle = align === "right" ? ink.accent : ink.second;
    ctx.lineWidth = state.pinned ? 3 : 1.5;
    ctx.strokeRect(x + 1.5, y - LINE / 2 + 1, margin - 3, LINE - 2);
  }

  // The text itself, shaded by what the chosen token attends to, or what attends to it.
  const stripName = h("p", { class: "mll-note" });
  const chips = tokens.map((text, i) => token(text, {
    role: "option", id: unique("t"), "aria-selected": "false", "data-at": i,
    class: i ? "" : "mll-att-first", title: `token ${i}`,
  }));
  const strip = h("div", {
    class: "mll-att-strip", role: "listbox", tabindex: 0, "aria-label": "tokens",
    onmousemove: (event) => {
      const chip = event.target.closest("[data-at]");
      if (chip && !state.pinned) focusOn(alone(Number(chip.dataset.at)));
    },
    onmouseleave: () => !state.pinned && focusOn({ query: null, key: null }),
    onclick: (event) => {
      const chip = event.target.closest("[data-at]");
      if (chip) pin(alone(Number(chip.dataset.at)));
    },
  }, chips);
  arrows(strip, (dx, dy) => {
    focusOn(alone(moved(chosen(), dx || clamp(dy, -S, S), 0)));
    speak();
  });
  const alone = (token) => (state.side === "key" ? { query: null, key: token }
    : { query: Math.max(token, first), key: null });
  const chosen = () => (state.side === "key" ? state.key ?? state.query : state.query ?? state.key);
  const moved = (from, by, low) => clamp((from ?? (by < 0 ? S : low - 1)) + by, low, S - 1);

  function showStrip() {
    const m = matrix(state.a);
    const { query, key } = state;
    const byKey = query === null || (state.side === "key" && key !== null);
    const weight = key === null && query === null ? received(m)
      : byKey ? (i) => (i < first ? 0 : m[(i - first) * S + key]) : (i) => m[(query - first) * S + i];
    chips.forEach((chip, i) => {
      const shade = Math.round(32 * Math.sqrt(weight(i))) / 32;
      if (chip.shade !== shade || chip.night !== ink.dark) {
        const colour = shade ? ramp(shade, ink.dark) : null;
        Object.assign(chip.style, { background: colour ? css(colour) : "", color: colour ? inkOn(colour) : "" });
        Object.assign(chip, { shade, night: ink.dark });
      }
      const mark = i === query ? "query" : i === key ? "key" : "";
      if ((chip.dataset.mark ?? "") !== mark) chip.dataset.mark = mark;
    });
    const now = byKey ? key : query;
    strip.querySelector('[aria-selected="true"]')?.setAttribute("aria-selected", "false");
    if (now === null) {
      strip.removeAttribute("aria-activedescendant");
      stripName.replaceChildren("The text, shaded by what each token gets on average");
      return;
    }
    chips[now].setAttribute("aria-selected", "true");
    strip.setAttribute("aria-activedescendant", chips[now].id);
    const top = chips[now].offsetTop - strip.offsetTop;
    if (document.activeElement === strip) {
      if (top < strip.scrollTop) strip.scrollTop = top - 4;
      if (top > strip.scrollTop + strip.clientHeight - 26) strip.scrollTop = top - strip.clientHeight + 30;
    }
    stripName.replaceChildren("The text, shaded by what ", ...(byKey
      ? ["attends to ", token(tokens[now])] : [token(tokens[now]), " attends to"]));
  }

  /** The mean weight of each key over the queries that can see it. */
  function received(m) {
    if (!entry.made.has(m)) {
      const sums = new Float32Array(S);
      for (let t = 0; t < T; t++) for (let s = 0; s < S; s++) sums[s] += m[t * S + s];
      entry.made.set(m, sums.map((x, s) => x / (causal ? Math.min(T, S - s) : T)));
    }
    const mean = entry.made.get(m);
    return (i) => mean[i];
  }

  // The numbers.
  const place = (i) => [`${i} `, token(tokens[i])];

  function showCell() {
    const { query, key } = state;
    const row = query === null ? null : (query - first) * S;
    const pinned = state.pinned ? h("b", { class: "mll-att-pinned" }, "pinned ") : null;
    if (row === null || key === null) {
      const hint = query === null && key === null
        ? ["Point at a token, or use the arrow keys in the map, the lines or the text."]
        : [query === null ? "key " : "query ", ...place(query ?? key)];
      cell.replaceChildren(...[pinned, ...hint].filter(Boolean));
      return;
    }
    const a = matrix(state.a)[row + key];
    const parts = ["query ", ...place(query), " → key ", ...place(key), ": ", h("b", {}, digits(a))];
    if (causal && key > query) parts.push(" (the mask hides it)");
    if (state.b) {
      const b = matrix(state.b)[row + key];
      parts.push(` in a, `, h("b", {}, digits(b)), ` in b, a − b ${signed(a - b)}`);
    }
    cell.replaceChildren(...[pinned, ...parts].filter(Boolean));
  }

  /** The largest of a row or column, in a table that keeps its height. */
  function top(head, weightOf, from) {
    const a = matrix(state.a);
    const b = state.b ? matrix(state.b) : null;
    const order = weightOf ? [...Array(S - from).keys()].map((i) => i + from)
      .map((i) => [a[weightOf(i)], i]).filter(([x]) => x >= 0.0005)
      .sort((x, y) => y[0] - x[0]).slice(0, TABLE) : [];
    const rows = order.map(([x, i]) => h("tr", {},
      h("td", {}, place(i), h("span", { class: "mll-att-bar", style: { width: `${100 * x}%` } })),
      h("td", {}, digits(x)),
      b && h("td", {}, digits(b[weightOf(i)])),
      b && h("td", {}, signed(x - b[weightOf(i)]))));
    const empty = [...Array(TABLE - rows.length)].map(() => h("tr", { "aria-hidden": "true" }, h("td", { colspan: b ? 4 : 2 }, "\u00a0")));
    return h("table", { class: b && "mll-att-wide" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, head),
      h("th", { scope: "col" }, b ? "a" : "weight"), b && h("th", { scope: "col" }, "b"),
      b && h("th", { scope: "col" }, "a − b"))), h("tbody", {}, rows, empty));
  }

  function showLists() {
    const query = state.query ?? (state.key !== null && state.key >= first ? state.key : null);
    const key = state.key ?? state.query;
    lists.replaceChildren(
      top(query === null ? ["attends to"] : [token(tokens[query]), " attends to"],
        query === null ? null : (i) => (query - first) * S + i, 0),
      top(key === null ? ["is attended by"] : [token(tokens[key]), " is attended by"],
        key === null ? null : (i) => (i - first) * S + key, first),
    );
  }

  // What is chosen, and how it moves.
  let painting = 0;
  function focusOn(change) {
    Object.assign(state, change);
    if (change.side) sideField.field.value = state.side;
    if (!painting) painting = requestAnimationFrame(showFocus);
  }
  function showFocus() {
    painting = 0;
    if (!entry || !width || left) return;
    maps.forEach((one) => one.paint());
    showCell();
    showLists();
    showStrip();
  }
  onLeave(() => cancelAnimationFrame(painting));

  function pin(change) {
    const same = state.pinned && Object.keys(change).every((name) => state[name] === change[name]);
    state.pinned = !same;
    focusOn(change);
    speak();
  }

  /** Arrow keys: in the map to a query and a key, between lines to a token of a side. */
  function step(dx, dy) {
    if (state.look === "lines") {
      const onKeys = dx ? dx > 0 : state.query === null && state.key !== null;
      const now = state.query ?? state.key;
      const low = onKeys ? 0 : first;
      const token = dy || now === null ? moved(now, dy || 1, low) : Math.max(now, low);
      focusOn(onKeys ? { query: null, key: token, side: "key" } : { query: token, key: null, side: "query" });
      maps.forEach((one) => one.reveal(token));
    } else {
      const query = state.query ?? state.key ?? S - 1;
      const key = state.key ?? query;
      const isNew = state.query === null || state.key === null;
      focusOn(isNew ? { query: Math.max(query, first), key }
        : { query: clamp(query + dy, first, S - 1), key: clamp(key + dx, 0, S - 1) });
    }
    speak();
  }

  function speak() {
    const { query, key } = state;
    const a = matrix(state.a);
    const pinned = state.pinned ? "pinned, " : "";
    if (query === null && key === null) return tell("no token chosen");
    if (query !== null && key !== null) {
      return tell(`${pinned}query ${query} ${shown[query]}, key ${key} ${shown[key]}: ${digits(a[(query - first) * S + key])}`);
    }
    const weight = query !== null ? (i) => a[(query - first) * S + i]
      : (i) => (i < first ? 0 : a[(i - first) * S + key]);
    const best = shown.map((text, i) => [weight(i), text]).sort((x, y) => y[0] - x[0]).slice(0, 3);
    const list = best.map(([x, text]) => `${text} ${digits(x)}`).join(", ");
    return tell(query !== null ? `${pinned}${shown[query]} attends to ${list}` : `${pinned}${shown[key]} is attended by ${list}`);
  }

  // All layers at a glance: small maps, asked for when somebody opens them.
  const glance = {
    node: h("canvas", {
      tabindex: 0, role: "application",
      "aria-label": "all layers and heads: arrow keys choose, Enter opens one",
      // A page that scrolls below a resting mouse sends moves of no length.
      onmousemove: (event) => (event.movementX || event.movementY) && sayGlance(underMouse(event)),
      onclick: (event) => openGlance(underMouse(event)),
      onkeydown: (event) => {
        if (event.key !== "Enter") return;
        event.preventDefault();
        event.stopPropagation();
        openGlance(glance.at);
      },
    }),
    said: h("p", { class: "mll-note" }), image: null, at: null, cell: 24,
  };
  const underMouse = (event) => {
    const frame = glance.node.getBoundingClientRect();
    const heads = ids.map((_, j) => glanceX(j));
    const x = event.clientX - frame.left;
    const head = Math.max(0, heads.findLastIndex((start) => start <= x));
    const row = Math.floor((event.clientY - frame.top) / (glance.cell + 2));
    return { layer: clamp(row, 0, layers.length - 1), head };
  };
  const glanceX = (head) => 30 + head * (glance.cell + 2) + Math.floor(head / familySize) * 6;

  async function fetchGlance() {
    if (!overview.open) return;
    const answer = glance.image ? null : await get("overview", {});
    if (answer) {
      const [high, wide] = answer.side;
      const roots = new Uint8Array(answer.buffers[0].buffer, answer.buffers[0].byteOffset);
      Object.assign(glance, { high, wide, roots, sinks: answer.sinks });
    }
    if (glance.roots) showGlance(true);
  }

  function showGlance(afresh) {
    if (!overview.open || !glance.roots) return;
    glance.node.hidden = false;
    if (afresh || glance.night !== ink.dark) {
      const { high, wide, roots } = glance;
      glance.image = h("canvas", { width: wide, height: high * layers.length * H });
      const ctx = glance.image.getContext("2d");
      const image = ctx.createImageData(glance.image.width, glance.image.height);
      new Uint32Array(image.data.buffer).set(Uint32Array.from(roots, (root) => colours.more[root]));
      ctx.putImageData(image, 0, 0);
      glance.night = ink.dark;
    }
    const spare = width - 40 - 6 * (families ?? 1) - 2 * H;
    const c = glance.cell = clamp(Math.floor(spare / H), 14, 36);
    const ctx = sized(glance.node, glanceX(H), (c + 2) * layers.length + 2);
    ctx.font = ink.small;
    ctx.fillStyle = ink.text;
    ctx.textAlign = "right";
    ctx.textBaseline = "middle";
    const now = glance.at ?? { layer: state.layer, head: Number(state.a) };
    layers.forEach((number, i) => {
      const y = 1 + i * (c + 2);
      ctx.fillText(number, 24, y + c / 2);
      for (let j = 0; j < H; j++) {
        const from = (i * H + j) * glance.high;
        ctx.drawImage(glance.image, 0, from, glance.wide, glance.high, glanceX(j), y, c, c);
        ctx.strokeStyle = i === now.layer && j === now.head ? ink.second : ink.line;
        ctx.lineWidth = i === now.layer && j === now.head ? 3 : 0.5;
        ctx.strokeRect(glanceX(j), y, c, c);
      }
    });
  }
  function sayGlance(at) {
    if (!glance.sinks) return;
    glance.at = at;
    glance.said.textContent = `layer ${layers[at.layer]}, head ${at.head}: `
      + `first token takes ${glance.sinks[at.layer][at.head].toFixed(2)}`;
    showGlance();
  }
  function openGlance(at) {
    if (!at || !glance.sinks) return;
    state.a = String(at.head);
    go(at.layer, false);
    pick("a", state.a);
  }
  const overview = h("details", { class: "mll-att-all", ontoggle: fetchGlance },
    h("summary", {}, layers.length > 1 ? `all ${layers.length} layers at a glance` : "the layer at a glance"),
    glance.said, h("div", { class: "mll-att-glance" }, glance.node));
  glance.node.hidden = true; // until there is something to choose from
  arrows(glance.node, (dx, dy) => {
    const from = glance.at ?? { layer: state.layer, head: Number(state.a) || 0 };
    sayGlance({ layer: clamp(from.layer + dy, 0, layers.length - 1), head: clamp(from.head + dx, 0, H - 1) });
    const box = glance.node.parentElement;
    const y = glance.at.layer * (glance.cell + 2);
    box.scrollTop = clamp(box.scrollTop, y - box.clientHeight + glance.cell + 4, y);
    tell(glance.said.textContent);
  });

  const stop = new AbortController();
  onLeave(() => stop.abort());
  root.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || !entry) return;
    const turn = {
      "[": () => layers.length > 1 && go(clamp(state.layer - 1, 0, layers.length - 1), false),
      "]": () => layers.length > 1 && go(clamp(state.layer + 1, 0, layers.length - 1), false),
      ",": () => pick("a", nextHead(-1)),
      ".": () => pick("a", nextHead(1)),
    }[event.key];
    const free = event.key === "Escape" && (state.pinned || state.query !== null || state.key !== null);
    const onToken = event.target.tagName === "CANVAS" || event.target === strip;
    if (turn) turn();
    else if (free) {
      state.pinned = false;
      focusOn({ query: null, key: null });
      speak();
    } else if (event.key === "Enter" && onToken && (state.query !== null || state.key !== null)) {
      pin({ query: state.query, key: state.key });
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }, { signal: stop.signal });
  const nextHead = (by) => {
    const all = options.map(([id]) => id);
    return all[clamp(all.indexOf(state.a) + by, 0, all.length - 1)];
  };

  // Colours and sizes.
  function readColours() {
    const style = getComputedStyle(root);
    const value = (name) => style.getPropertyValue(`--mll-${name}`).trim();
    const probe = h("span", { style: { color: "var(--mll-ink)", fontFamily: "var(--mll-mono)" } });
    root.append(probe);
    const found = getComputedStyle(probe);
    ink = {
      dark: isDark(root), text: found.color, line: value("line"), accent: value("accent"),
      second: value("second"), font: `12px ${found.fontFamily}`, small: `10px ${found.fontFamily}`,
    };
    probe.remove();
    colours = palettes(ink.dark);
    legend.style.background = `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map((t) => css(ramp(t, ink.dark))).join(",")})`;
  }
  function layout(force = false) {
    const style = getComputedStyle(root);
    const now = Math.floor(root.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight));
    if (now <= 0 || (now === width && !force)) return;
    width = now;
    readColours(); // before the view stands in the page there is no theme to read
    showHeads();
    showGlance();
  }

  const legend = h("span", { class: "mll-att-ramp" });
  const scale = h("div", { class: "mll-att-legend", "aria-hidden": "true" }, legend,
    h("span", { class: "mll-att-scale" }, [0, 0.06, 0.25, 0.56, 1].map((x) => h("i", {}, String(x)))));
  const notes = h("p", { class: "mll-note" },
    "Arrow keys choose, Enter or a click pins, Escape frees; ", h("kbd", {}, "["), " ", h("kbd", {}, "]"),
    " change the layer, ", h("kbd", {}, ","), " ", h("kbd", {}, "."), " the head, with Shift and a click a second one. ",
    "▾ marks the first token, the attention sink. ",
    bits === 8 ? "Numbers in this saved page are right to 0.004." : "Numbers are right to 0.001.");
  const body = h("div", { class: "mll-att-body" }, panels, side);
  root.append(
    h("div", { class: "mll-row" }, layerField.node, meanLayers, headField.node, otherField.node),
    family,
    h("div", { class: "mll-row" },
      h("span", { role: "group", "aria-label": "shown as", class: "mll-att-looks" }, looks),
      difference, hideSink, sideField.node, scale),
    body, stripName, strip, notes, overview,
  );
  onTheme(() => layout(true));
  onResize(() => layout());
  go(state.layer, false, false).then(() => layout(true));
}

export default framed(drawAttention);
