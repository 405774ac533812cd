// Tokens coloured by a value each, and the tokens where it is largest and smallest.

const floats = (text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const shown = (v) => String(Number(v.toPrecision(4))).replace("-", "−");
/** Sign and size without colour: up to three marks. */
function marks(t) {
  const count = [0.15, 0.45, 0.75].filter((step) => Math.abs(t) >= step).length;
  return (t < 0 ? "−" : "+").repeat(count);
}

function drawValues({ root, data, tell, onTheme }) {
  const { axes } = data;
  const texts = data.texts.map(({ tokens, values }) => ({ tokens, values: floats(values) }));
  const pick = axes.map(() => 0);
  let text = 0;
  let at = 0;
  let wholeScale = false;
  let length = 5;
  let chips = [];

  /** The values of one text in the row that is chosen. */
  function row(which) {
    const { tokens, values } = texts[which];
    const place = pick.reduce((sum, p, i) => sum * axes[i].options.length + p, 0);
    return values.subarray(place * tokens.length, (place + 1) * tokens.length);
  }
  const largest = (arrays) => arrays.reduce(
    (most, values) => values.reduce((m, v) => Math.max(m, Math.abs(v)), most), 0) || 1;
  const ofAll = largest(texts.map((one) => one.values));
  const scale = () => (wholeScale ? ofAll : largest(texts.map((_, i) => row(i))));
  const signed = texts.some((one) => one.values.some((v) => v < 0));

  const pickers = axes.map((axis, i) => choice({
    label: axis.name, value: 0, options: axis.options.map((name, k) => [k, name]),
    input: (k) => { pick[i] = Number(k); show(); tell(inWords()); },
  }));
  const textPicker = texts.length > 1 ? choice({
    label: "text", value: 0,
    options: texts.map((one, i) => [i, `${i + 1}: ${visible(one.tokens.join("").slice(0, 24))}`]),
    input: (i) => { text = Number(i); at = 0; show(); tell(inWords()); },
  }) : null;
  const scalePicker = axes.length ? choice({
    label: "scale", value: "row", options: [["row", "of this row"], ["all", "of all rows"]],
    input: (which) => { wholeScale = which === "all"; paint(); tell(inWords()); },
  }) : null;
  const longer = slider({
    label: "listed", min: 1, max: 20, value: length,
    input: (v) => { length = v; list(); },
  });
  const legend = h("span", { class: "mll-values-legend" });
  const line = h("ul", { class: "mll-values", "aria-label": "tokens and their values" });
  const about = h("p", { class: "mll-note mll-values-about" });
  const top = h("ol", { class: "mll-values-top", "aria-label": "largest values" });
  const bottom = h("ol", { class: "mll-values-top", "aria-label": "smallest values" });

  const inWords = () => {
    const [high] = ranked();
    return `largest ${visible(texts[high.text].tokens[high.i])} ${shown(high.value)}`;
  };

  function show() {
    const { tokens } = texts[text];
    at = Math.min(at, tokens.length - 1);
    chips = tokens.map((one, i) => h("li", {
      class: "mll-value", tabindex: i === at ? 0 : -1,
      onfocus: () => { say(i); tell(about.textContent); }, onmouseenter: () => say(i),
    }, token(one), h("small", { "aria-hidden": "true" })));
    line.replaceChildren(...chips.flatMap((chip, i) => (tokens[i].includes("\n")
      ? [chip, h("li", { class: "mll-values-break", "aria-hidden": "true" })] : [chip])));
    paint();
    list();
    say(at);
  }

  function paint() {
    const dark = isDark(root);
    const values = row(text);
    const most = scale();
    chips.forEach((chip, i) => {
      const t = values[i] / most;
      const colour = diverge(t, dark);
      chip.style.background = css(colour);
      chip.style.color = inkOn(colour);
      chip.lastChild.textContent = marks(t);
      chip.setAttribute("aria-label", `${visible(texts[text].tokens[i])} ${shown(values[i])}`);
    });
    const steps = signed ? [-1, -0.6, -0.3, 0, 0.3, 0.6, 1] : [0, 0.3, 0.6, 1];
    legend.replaceChildren(shown(signed ? -most : 0), ...steps.map((t) => {
      const colour = diverge(t, dark);
      return h("i", { style: { background: css(colour), color: inkOn(colour) } }, marks(t));
    }), shown(most));
  }

  function say(i) {
    at = i;
    chips.forEach((chip, k) => chip.setAttribute("tabindex", k === i ? 0 : -1));
    const values = row(text);
    const rank = 1 + values.reduce((n, v) => n + (v > values[i]), 0);
    about.replaceChildren(`token ${i + 1} of ${values.length}, `, token(texts[text].tokens[i]),
      ": ", h("b", {}, shown(values[i])), `, number ${rank} from above`, elsewhere(i));
  }

  /** In which row this token has its largest and its smallest value. */
  function elsewhere(i) {
    if (!axes.length) return "";
    const { tokens, values } = texts[text];
    let [high, low] = [i, i];
    for (let k = i; k < values.length; k += tokens.length) {
      if (values[k] > values[high]) high = k;
      if (values[k] < values[low]) low = k;
    }
    const name = (k) => {
      let place = Math.floor(k / tokens.length);
      return axes.map((_, a) => axes.length - 1 - a).map((a) => {
        const own = place % axes[a].options.length;
        place = Math.floor(place / axes[a].options.length);
        return `${axes[a].name} ${axes[a].options[own]}`;
      }).reverse().join(", ");
    };
    return `. Over all rows: largest ${shown(values[high])} (${name(high)}), smallest ${shown(values[low])} (${name(low)}).`;
  }

  function ranked() {
    const all = texts.flatMap((_, k) => Array.from(row(k), (value, i) => ({ text: k, i, value })));
    return all.sort((a, b) => b.value - a.value);
  }

  function list() {
    const all = ranked();
    fill(top, all.slice(0, length));
    fill(bottom, all.slice(-length).reverse());
  }
  function fill(place, found) {
    place.replaceChildren(...found.map(({ text: k, i, value }, n) => {
      const { tokens } = texts[k];
      return h("li", {}, h("button", { type: "button", tabindex: n ? -1 : 0, onclick: () => go(k, i) },
        h("span", { class: "mll-values-number" }, shown(value)),
        h("span", {}, texts.length > 1 ? `${k + 1}: ` : "", ...tokens.slice(Math.max(0, i - 3), i).map((t) => token(t)),
          token(tokens[i], { class: "mll-values-here" }), ...tokens.slice(i + 1, i + 3).map((t) => token(t)))));
    }));
  }
  function go(k, i) {
    if (k !== text) {
      text = k;
      textPicker.field.value = k;
      show();
    }
    say(i);
    chips[i].focus();
  }

  arrows(line, (dx, dy) => {
    const to = chips[clamp(at + dx + dy, 0, chips.length - 1)];
    to.focus();
  });
  for (const place of [top, bottom]) {
    arrows(place, (dx, dy) => {
      const all = [...place.querySelectorAll("button")];
      const to = all[clamp(all.indexOf(document.activeElement) + dx + dy, 0, all.length - 1)];
      all.forEach((one) => one.setAttribute("tabindex", one === to ? 0 : -1));
      to.focus();
    });
  }

  root.append(
    h("div", { class: "mll-row" }, textPicker?.node, pickers.map((one) => one.node), scalePicker?.node, legend),
    line, about,
    h("div", { class: "mll-row" }, longer.node),
    h("div", { class: "mll-values-frame" }, h("div", { class: "mll-values-lists" },
      h("div", {}, h("h3", {}, "Largest"), top), h("div", {}, h("h3", {}, "Smallest"), bottom))));
  show();
  onTheme(paint);
}

export default framed(drawValues);
