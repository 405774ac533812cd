// What a KV cache takes, under sliders: the sum, three kinds of heads, and memories.

const GIB = 2 ** 30;
const TOKENS = Array.from({ length: 14 }, (_, i) => [2 ** (i + 7), 1.5 * 2 ** (i + 7)]).flat();
const BATCHES = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256];
const WIDTHS = [["4", "4: float32"], ["2", "2: bfloat16, float16"], ["1", "1: 8 bits"], ["0.5", "½: 4 bits"]];
const OWN = "own numbers";

const many = (x) => Math.floor(x).toLocaleString("en");
/** Three digits at least, in the largest unit of which there is one. */
function size(bytes) {
  const [unit, name] = [[GIB, "GiB"], [2 ** 20, "MiB"], [1024, "KiB"], [1, "bytes"]]
    .find(([unit]) => bytes >= 0.995 * unit) ?? [1, "bytes"];
  const x = bytes / unit;
  if (unit === 1) return `${x} bytes`;
  return `${x < 99.95 ? x.toFixed(2) : many(Math.round(x))} ${name}`;
}
const divisors = (n) => Array.from({ length: n }, (_, i) => i + 1).filter((d) => n % d === 0);
const nearest = (list, x) => list.reduce((best, y) => (Math.abs(y - x) < Math.abs(best - x) ? y : best));
const withValue = (list, x) => [...new Set([...list, x])].sort((a, b) => a - b);

/** The formula of LlamaConfig.kv_cache_bytes; the first 2 is for keys and values. */
const aToken = (s, heads) => 2 * s.n_layers * heads * s.head_dim * s.number_bytes;
const cacheBytes = (s, heads = s.n_kv_heads) => aToken(s, heads) * s.tokens * s.batch;

/** A slider over a list of values that may change. */
function listSlider({ label, list, value, input }) {
  const made = slider({
    label, min: 0, max: list.length - 1, value: list.indexOf(value),
    show: (i) => many(list[i]), input: (i) => input(list[i]),
  });
  return {
    node: made.node,
    set(next, value) {
      list = next;
      made.field.max = list.length - 1;
      made.value = list.indexOf(value);
    },
  };
}

function drawCache({ root, data, tell }) {
  const names = Object.keys(data.models);
  const most = (key, least) => Math.max(least, ...Object.values(data.models).map((m) => m[key]));
  const state = { ...data.start, ...data.models[names[0]] };
  let preset = names[0];
  let counted = true;

  const model = choice({
    label: "model", value: preset, options: [...names, OWN].map((name) => [name, name]),
    input: (name) => {
      preset = name;
      if (name !== OWN) Object.assign(state, { weight_bytes: 0 }, data.models[name]);
      settle();
      show();
    },
  });
  /** A slider of the model itself: once moved, it is no known model any more. */
  const own = (key, label, min, max, step = 1) => slider({
    label, min, max, step, value: state[key],
    input: (v) => {
      state[key] = v;
      if (key === "n_heads") state.n_kv_heads = nearest(divisors(v), state.n_kv_heads);
      changed();
    },
  });
  const layers = own("n_layers", "layers", 1, most("n_layers", 128));
  const heads = own("n_heads", "query heads", 1, most("n_heads", 128));
  const kv = listSlider({
    label: "KV heads", list: divisors(state.n_heads), value: state.n_kv_heads,
    input: (v) => { state.n_kv_heads = v; changed(); },
  });
  const dim = own("head_dim", "head size", 1, most("head_dim", 256));
  const tokens = listSlider({
    label: "tokens", list: withValue(TOKENS, state.tokens), value: state.tokens,
    input: (v) => { state.tokens = v; show(); },
  });
  const batch = listSlider({
    label: "batch", list: withValue(BATCHES, state.batch), value: state.batch,
    input: (v) => { state.batch = v; show(); },
  });
  const width = choice({
    label: "bytes each", value: String(state.number_bytes), options: WIDTHS,
    input: (v) => { state.number_bytes = Number(v); show(); },
  });
  const weights = button("count the weights", () => {
    counted = !counted;
    weights.setAttribute("aria-pressed", counted);
    show();
  }, { "aria-pressed": "true" });

  function changed() {
    preset = OWN;
    state.weight_bytes = 0;
    settle();
    show();
  }
  function settle() {
    model.field.value = preset;
    layers.value = state.n_layers;
    heads.value = state.n_heads;
    dim.value = state.head_dim;
    kv.set(divisors(state.n_heads), state.n_kv_heads);
  }

  const total = h("p", { class: "mll-cache-size" });
  const formula = h("p", { class: "mll-note mll-cache-formula" });
  const kinds = h("div", { class: "mll-cache-kinds" });
  const fits = h("div", { class: "mll-cache-fits" });
  const hatched = h("span", { class: "mll-cache-hatched" }, " (hatched: the weights)");
  const row = (label, track, note) => h("div", { class: "mll-cache-row" },
    h("span", {}, label), track, h("span", { class: "mll-cache-note" }, note));
  const fill = (share, kind) => h("div", { class: kind, style: { width: `${100 * share}%` } });

  function show() {
    const bytes = cacheBytes(state);
    weights.hidden = !state.weight_bytes;
    hatched.hidden = !state.weight_bytes || !counted;
    total.textContent = size(bytes);
    formula.textContent = `${many(bytes)} bytes = 2 (K and V) × ${state.n_layers} layers × `
      + `${state.n_kv_heads} KV heads × ${state.head_dim} × ${many(state.tokens)} tokens × `
      + `batch ${state.batch} × ${state.number_bytes} bytes; `
      + `${many(aToken(state, state.n_kv_heads))} bytes a token`;
    kinds.replaceChildren(...kindRows());
    const fit = data.memories.map(memoryRow);
    fits.replaceChildren(...fit.map((one) => one.node));
    tell(`${size(bytes)}. ${fit.map((one) => one.words).join(". ")}`);
  }

  function kindRows() {
    const all = cacheBytes(state, state.n_heads);
    return [["MHA", state.n_heads], ["GQA", state.n_kv_heads], ["MQA", 1]].map(([name, count]) => {
      const bytes = cacheBytes(state, count);
      const less = all === bytes ? "" : `, ${(all / bytes).toLocaleString("en")} times less`;
      return row(`${name}, ${count} KV ${count === 1 ? "head" : "heads"}`,
        h("div", { class: "mll-cache-track mll-cache-bare", "aria-hidden": "true" },
          fill(bytes / all, "mll-cache-fill")), `${size(bytes)}${less}`);
    });
  }

  function memoryRow(gib) {
    const memory = gib * GIB;
    const taken = counted ? (state.weight_bytes ?? 0) : 0;
    const bytes = cacheBytes(state);
    const left = memory - taken - bytes;
    const room = Math.max(0, (memory - taken) / (aToken(state, state.n_kv_heads) * state.batch));
    const fit = left >= 0;
    const tokens = `room for ${many(room)} tokens${state.batch > 1 ? " each" : ""}`;
    const note = taken > memory ? "the weights alone are too much"
      : `${fit ? `fits, ${size(left)} free` : `${size(-left)} too much`}; ${tokens}`;
    const track = h("div", {
      class: `mll-cache-track ${fit ? "" : "mll-cache-over"}`, "aria-hidden": "true",
    }, taken ? fill(Math.min(1, taken / memory), "mll-cache-weights") : null,
    fill(Math.min(1, bytes / memory), "mll-cache-fill"));
    return { node: row(`${gib} GiB`, track, note), words: `${gib} GiB: ${note}` };
  }

  root.append(h("div", { class: "mll-cache-frame" }, h("div", { class: "mll-cache" },
    h("div", { class: "mll-cache-inputs" },
      model.node, layers.node, heads.node, kv.node, dim.node, tokens.node, batch.node, width.node,
      h("div", {}, weights)),
    h("div", {}, total, formula,
      h("h3", {}, "The same model with other heads"), kinds,
      h("h3", {}, "In a memory of", hatched), fits))));
  show();
}

export default framed(drawCache);
