// What all views share. Python puts this text in front of each view's own file, so that
// a view is one module that imports nothing.
//
// Text from models and learners becomes text nodes and never HTML: all nodes are made
// by `h`, and nothing here or in a view writes innerHTML.

/** An element: props are attributes, `onclick` and the like listeners, `style` an object. */
function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const MARKS = { " ": "·", "\n": "⏎", "\r": "␍", "\t": "⇥", "\u00a0": "⍽" };

/** A token as people can see it: blanks and line ends get marks, lone accents a ring. */
function visible(text) {
  if (text === "") return "∅";
  const shown = Array.from(text, (c) => {
    if (c in MARKS) return MARKS[c];
    return /\p{Cc}|\p{Cf}|\p{Cs}/u.test(c)
      ? `\\u{${c.codePointAt(0).toString(16)}}`
      : c;
  }).join("");
  return /^\p{M}/u.test(shown) ? `◌${shown}` : shown;
}

/** A token in an element of its own, so that right-to-left letters stay inside it. */
function token(text, props = {}) {
  return h("bdi", { ...props, class: `mll-token ${props.class ?? ""}` }, visible(text));
}

let counter = 0;
const unique = (stem) => `mll-${stem}-${Math.random().toString(36).slice(2, 8)}-${++counter}`;

/** A range input with its name and its value beside it. */
function slider({ label, min, max, step = 1, value, show = String, input }) {
  const field = h("input", {
    type: "range", min, max, step, value, "aria-label": label, "aria-valuetext": show(value),
    oninput: () => { settle(); input(Number(field.value)); },
  });
  const said = h("output", { "aria-hidden": "true" }, show(value));
  const settle = () => {
    said.textContent = show(Number(field.value));
    field.setAttribute("aria-valuetext", said.textContent);
  };
  return {
    node: h("label", { class: "mll-slider" }, h("span", {}, label), field, said),
    field,
    get value() { return Number(field.value); },
    set value(v) { field.value = v; settle(); },
  };
}

/** A drop-down list. `options` are [value, text] pairs. */
function choice({ label, options, value, input }) {
  const field = h("select", { onchange: () => input(field.value) },
    options.map(([v, text]) => h("option", { value: v }, text)));
  field.value = value;
  return { node: h("label", { class: "mll-choice" }, h("span", {}, label), field), field };
}

function button(text, onclick, props = {}) {
  return h("button", { type: "button", class: "mll-button", onclick, ...props }, text);
}

/** Arrow keys, Home and End on one focusable node: `move(dx, dy, event)`. */
const ARROWS = {
  ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
  Home: [-Infinity, 0], End: [Infinity, 0], PageUp: [0, -Infinity], PageDown: [0, Infinity],
};
function arrows(node, move) {
  node.addEventListener("keydown", (event) => {
    const step = ARROWS[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation(); // the notebook would go to the next cell
    move(step[0], step[1], event);
  });
}

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const percent = (p) => (p >= 0.0995 || p === 0 ? `${(100 * p).toFixed(0)} %`
  : p >= 0.001 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %");

/** Shades of one hue from the page's ground to full ink: darker, or in the dark lighter. */
const RAMPS = {
  light: [[255, 255, 255], [158, 202, 225], [49, 130, 189], [8, 48, 107]],
  dark: [[24, 24, 24], [24, 72, 122], [66, 146, 198], [222, 235, 247]],
};
function ramp(t, dark, stops = dark ? RAMPS.dark : RAMPS.light) {
  const x = clamp(Number.isFinite(t) ? t : 0, 0, 1) * (stops.length - 1);
  const i = Math.min(Math.floor(x), stops.length - 2);
  return stops[i].map((a, k) => Math.round(a + (x - i) * (stops[i + 1][k] - a)));
}
/** From -1 to 1: orange below nothing, blue above it; a mark must tell them apart too. */
const ORANGES = {
  light: [[255, 255, 255], [253, 190, 120], [214, 96, 10], [115, 46, 4]],
  dark: [[24, 24, 24], [112, 52, 8], [224, 124, 40], [255, 226, 196]],
};
function diverge(t, dark) {
  return t < 0 ? ramp(-t, dark, dark ? ORANGES.dark : ORANGES.light) : ramp(t, dark);
}
const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;
/** Ink that can be read on that shade: black or white, whichever has more contrast. */
function inkOn(shade) {
  const [r, g, b] = shade.map((v) => (v <= 10 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}

const isDark = (node) => getComputedStyle(node).getPropertyValue("--mll-dark").trim() === "1";

/** What a view says in words where it cannot show a picture. */
class Sentence extends Error {}

/** Questions to Python. In a saved page the recorded answers are all there is. */
function asker(model) {
  const waiting = new Map();
  const mine = unique("ask");
  let next = 0;
  const hear = (content, buffers) => {
    const one = waiting.get(content?.id);
    if (!one) return;
    if (content.part) return void one.part?.(content.part);
    waiting.delete(content.id);
    clearTimeout(one.timer);
    if (content.sentence) one.reject(new Sentence(content.sentence));
    else one.resolve({ ...content.answer, buffers: buffers ?? [] });
  };
  model.on("msg:custom", hear);
  /** `slow` runs when no answer has come after three seconds; `part` for each piece. */
  const ask = (what, args = {}, { slow, part } = {}) => new Promise((resolve, reject) => {
    const id = `${mine}-${++next}`;
    const timer = setTimeout(() => slow?.(), 3000);
    waiting.set(id, { resolve, reject, part, timer });
    try {
      model.send({ id, what, args });
    } catch {
      waiting.delete(id);
      clearTimeout(timer);
      reject(new Sentence(GONE));
    }
  });
  ask.stop = () => model.off("msg:custom", hear);
  return ask;
}
const GONE = "Python does not answer: the kernel is busy, or it has ended. "
  + "If it has, run the cell again.";

/** Wrap a view's `draw` into what anywidget and a saved page call. */
function framed(draw) {
  return {
    render({ model, el }) {
      // JupyterLab would act on plain keys as well: `a` adds a cell, Shift Enter runs one.
      const keep = (event) => {
        const forLab = event.ctrlKey || event.metaKey || event.altKey || event.key === "Escape";
        if (!forLab) event.stopPropagation();
      };
      const root = h("div", { class: "mll", onkeydown: keep });
      const words = h("p", { class: "mll-sentence", role: "alert", hidden: true });
      const live = h("div", { class: "mll-sr", "aria-live": "polite" });
      el.append(root);
      const ask = asker(model);
      const leaving = [];
      const say = (sentence) => {
        words.textContent = sentence ?? "";
        words.hidden = !sentence;
      };
      const tools = {
        model, root, ask, say,
        /** For ears: the same that eyes see after an input. */
        tell: (text) => { live.textContent = text; },
        /** Ask, and show the sentence if the answer is one. */
        get: async (what, args, how = {}) => {
          try {
            const answer = await ask(what, args, { slow: () => say(GONE), ...how });
            say(null);
            return answer;
          } catch (error) {
            if (!(error instanceof Sentence)) throw error;
            say(error.message);
            return null;
          }
        },
        onResize: (fn) => {
          const observer = new ResizeObserver(() => requestAnimationFrame(fn));
          observer.observe(root);
          leaving.push(() => observer.disconnect());
        },
        onTheme: (fn) => {
          // Lab puts the view into its page after it is drawn: only then is the theme known.
          const arrival = new ResizeObserver(() => { arrival.disconnect(); fn(); });
          arrival.observe(root);
          const observer = new MutationObserver(() => requestAnimationFrame(fn));
          observer.observe(document.body, { attributes: true });
          observer.observe(document.documentElement, { attributes: true });
          const scheme = matchMedia("(prefers-color-scheme: dark)");
          scheme.addEventListener("change", fn);
          leaving.push(() => {
            arrival.disconnect();
            observer.disconnect();
            scheme.removeEventListener("change", fn);
          });
        },
        onLeave: (fn) => leaving.push(fn),
        saved: model.saved === true,
      };
      const begin = () => {
        leaving.splice(0).forEach((leave) => leave());
        const data = model.get("data");
        root.replaceChildren();
        if (data.sentence) {
          say(data.sentence);
          root.append(words);
          return;
        }
        try {
          draw({ ...tools, data });
        } catch (error) {
          root.replaceChildren();
          say(`This view cannot be drawn: ${error.message}`);
          console.error(error);
        }
        root.append(words, live);
      };
      model.on("change:data", begin);
      begin();
      return () => {
        leaving.splice(0).forEach((leave) => leave());
        model.off("change:data", begin);
        ask.stop();
      };
    },
  };
}
