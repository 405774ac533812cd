// What may come next: bars under a sampler's sliders, and a tree of continuations.

const COUNTS = [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 300,
  500, 750, 1000, null];
const OFF = { temperature: 1, topK: null, topP: 1, minP: 0 };
const PATIENCE = 5000; // ms that measuring the start may take before it asks
const SHOWN = 6; // tokens of the start that the tree shows

const share = (p) => (p > 0 && p < 0.00005 ? "< 0.01 %" : `${(100 * p).toFixed(2)} %`);
const bits = (x) => (x === undefined ? "?" : `${x.toFixed(2)} bits`);
const signed = (x) => x.toFixed(2).replace("-", "−");
const whole = (n) => Math.round(n).toLocaleString("en");
const sum = (values) => values.reduce((a, b) => a + b, 0);

/**
 * What a sampler keeps, in the order of minillama.sampling: temperature, top-k, top-p,
 * min-p. `cut[i]` names what has cut the i-th likeliest token, `p[i]` is what remains
 * renormalised; `left[j]` tokens of bin j remain, each of probability `binP[j]`.
 */
function limit(next, { temperature, topK, topP, minP }) {
  const { logits, bins, counts } = next;
  const cut = logits.map(() => null);
  const greedy = temperature === 0;
  const heat = greedy ? 1 : temperature;
  const weights = logits.map((x) => Math.exp(x / heat));
  const binWeights = bins.map((x) => Math.exp(x / heat));
  const left = [...counts];
  const kept = () => sum(weights.map((w, i) => (cut[i] ? 0 : w)))
    + sum(binWeights.map((w, j) => w * left[j]));
  const all = kept();
  const below = (limit, name) => weights.forEach((w, i) => {
    if (w < limit && !cut[i]) cut[i] = name;
  });

  if (greedy) {
    cut.fill("temperature 0", 1);
    left.fill(0);
  }
  if (!greedy && topK && topK <= logits.length) {
    const last = logits[topK - 1];
    logits.forEach((x, i) => { if (x < last) cut[i] = "top-k"; });
    left.fill(0);
  }
  if (!greedy && topP < 1) {
    const wanted = topP * kept();
    let likelier = 0; // the weight of all that rank before
    let last = weights[0];
    for (let i = 0; i < weights.length && likelier < wanted && !cut[i]; i++) {
      last = weights[i];
      likelier += last;
    }
    below(last, "top-p");
    binWeights.forEach((w, j) => {
      left[j] = Math.min(left[j], Math.max(0, Math.ceil((wanted - likelier) / w)));
      likelier += left[j] * w;
    });
  }
  if (!greedy && minP > 0) {
    const floor = minP * weights[0];
    below(floor, "min-p");
    binWeights.forEach((w, j) => { if (w < floor) left[j] = 0; });
  }

  const remains = kept();
  const p = weights.map((w, i) => (cut[i] ? 0 : w / remains));
  const binP = binWeights.map((w) => w / remains);
  const plogp = (x, n = 1) => (x > 0 ? -n * x * Math.log2(x) : 0);
  return {
    cut, p, binP, left,
    count: cut.filter((by) => !by).length + sum(left),
    mass: remains / all,
    entropy: sum(p.map((x) => plogp(x))) + sum(binP.map((x, j) => plogp(x, left[j]))),
    guessed: left.some((n, j) => n > 0 && n < counts[j]),
  };
}

/** The n-th number of a seed's row, in [0, 1): mulberry32. */
function dart(seed, n) {
  let a = (seed + Math.imul(n + 1, 0x6d2b79f5)) >>> 0;
  a = Math.imul(a ^ (a >>> 15), a | 1);
  a ^= a + Math.imul(a ^ (a >>> 7), a | 61);
  return ((a ^ (a >>> 14)) >>> 0) / 4294967296;
}

/** One token of the text. `given` ones are the start; `next` is what may follow it. */
function newNode(about, parent, given) {
  return {
    ...about, parent, given, next: null, children: new Map(), open: true,
    at: given ? (parent?.at ?? 0) + 1 : parent.at,
    branch: given ? [] : [...parent.branch, about.id],
  };
}

function drawNextToken({ root, data, ask, get, say, tell, onLeave, saved }) {
  const start = [];
  for (const one of data.start) {
    const node = newNode(one, start.at(-1), true);
    node.parent?.children.set(one.id, node);
    start.push(node);
  }
  let here = start.at(-1); // the token whose successors are shown
  let leaf = here; // the end of the path that is shown
  let ticket = 0;
  let gone = false;
  onLeave(() => { gone = true; });
  const setting = { ...OFF };

  // ---- the sliders, and what they keep

  const show2 = (x) => x.toFixed(2);
  const sliders = {
    temperature: slider({
      label: "temperature", min: 0, max: 2, step: 0.05, value: 1,
      show: (x) => (x === 0 ? "0 greedy" : show2(x)), input: (x) => moved("temperature", x),
    }),
    topK: slider({
      label: "top-k", min: 0, max: COUNTS.length - 1, value: COUNTS.length - 1,
      show: (i) => String(COUNTS[i] ?? "off"), input: (i) => moved("topK", COUNTS[i]),
    }),
    topP: slider({
      label: "top-p", min: 0.01, max: 1, step: 0.01, value: 1,
      show: (x) => (x === 1 ? "off" : show2(x)), input: (x) => moved("topP", x),
    }),
    minP: slider({
      label: "min-p", min: 0, max: 1, step: 0.01, value: 0,
      show: (x) => (x === 0 ? "off" : show2(x)), input: (x) => moved("minP", x),
    }),
  };
  function moved(name, value) {
    setting[name] = value;
    paint();
    const { count, mass } = limit(here.next, setting);
    tell(`${whole(count)} tokens kept, ${share(mass)} of the probability`);
  }
  function reset() {
    Object.assign(setting, OFF);
    sliders.temperature.value = 1;
    sliders.topK.value = COUNTS.length - 1;
    sliders.topP.value = 1;
    sliders.minP.value = 0;
    paint();
    tell("all limits off, temperature 1");
  }

  const code = h("code", { class: "mll-nt-code" });
  const keeps = h("tbody", {});
  const keepsTable = h("table", { class: "mll-nt-keeps" },
    h("caption", {}, "What each limit keeps by itself, and all in their order"),
    h("thead", {}, h("tr", {}, ["limit", "set to", "tokens", "probability"].map((text) =>
      h("th", { scope: "col" }, text)))),
    keeps);

  function paintKeeps(together) {
    const heat = { ...OFF, temperature: setting.temperature };
    const alone = (name) => limit(here.next, { ...heat, [name]: setting[name] });
    const line = (name, set, { count, mass, guessed }) => h("tr", {},
      h("th", { scope: "row" }, name), h("td", {}, set),
      h("td", {}, `${guessed ? "about " : ""}${whole(count)}`), h("td", {}, share(mass)));
    const three = ["topK", "topP", "minP"].map(alone);
    const shown = ["topK", "topP", "minP"].map((n) => sliders[n].field.getAttribute("aria-valuetext"));
    keeps.replaceChildren(
      line("top-k", shown[0], three[0]), line("top-p", shown[1], three[1]),
      line("min-p", shown[2], three[2]), line("together", "", together));
    const written = { temperature: "temperature", topK: "top_k", topP: "top_p", minP: "min_p" };
    const said = Object.keys(OFF).filter((n) => setting[n] !== OFF[n])
      .map((n) => `${written[n]}=${setting[n]}`);
    code.textContent = `Sampler(${said.join(", ")})`;
    return three;
  }

  // ---- the bars

  const heading = h("p", { class: "mll-note" });
  const bars = h("ol", { class: "mll-nt-bars", "aria-label": "tokens that may come next" });
  const rest = h("p", { class: "mll-note" });
  const scale = h("span", { class: "mll-nt-scale" });
  const head = h("div", { class: "mll-nt-row mll-nt-head", "aria-hidden": "true" },
    h("span", {}, ""), h("span", {}, "token"), h("span", { class: "mll-nt-marks", title: "kept by top-k, top-p, min-p alone" }, ["k", "p", "m"].map((c) => h("span", {}, c))),
    scale, h("span", {}, "model"), h("span", {}, "drawn"));
  let rows = [];

  function newRow(i) {
    const text = here.next.texts[i];
    const special = here.next.special.includes(i);
    const row = {
      text, special, model: h("i", { class: "mll-nt-model" }), drawn: h("i", { class: "mll-nt-drawn" }),
      kept: ["k", "p", "m"].map(() => h("i", { class: "mll-nt-mark" })), number: h("span", {}),
      p: Math.exp(here.next.logits[i] - here.next.total),
    };
    const node = here;
    row.button = h("button", {
      type: "button", class: "mll-nt-row", tabindex: i ? -1 : 0, title: `id ${here.next.ids[i]}`,
      onclick: () => into(child(node, i), true),
    }, h("span", { class: "mll-nt-rank" }, String(i + 1)),
    token(text, { class: special ? "mll-nt-special" : "" }),
    h("span", { class: "mll-nt-marks" }, row.kept),
    h("span", { class: "mll-nt-track" }, row.model, row.drawn),
    h("span", {}, share(row.p)), row.number);
    return row;
  }

  function fill() {
    rows = here.next.texts.map((_, i) => newRow(i));
    bars.replaceChildren(...rows.map((row) => h("li", {}, row.button)));
    bars.scrollTop = 0;
  }
  arrows(bars, (dx, dy) => {
    const at = rows.findIndex((row) => row.button === document.activeElement);
    const to = clamp(at + clamp(dx + dy, -rows.length, rows.length), 0, rows.length - 1);
    rows.forEach((row, i) => row.button.setAttribute("tabindex", i === to ? 0 : -1));
    rows[to].button.focus();
  });

  function paint() {
    const result = limit(here.next, setting);
    const three = paintKeeps(result);
    const highest = Math.max(rows[0].p, result.p[0]);
    const full = [0.01, 0.05, 0.1, 0.25, 0.5, 1].find((x) => highest <= x) ?? 1;
    scale.replaceChildren(h("span", {}, "0"), h("span", {}, `${100 * full} %`));
    rows.forEach((row, i) => {
      const cut = result.cut[i];
      row.model.style.width = `${100 * row.p / full}%`;
      row.drawn.style.width = `${100 * result.p[i] / full}%`;
      row.button.classList.toggle("mll-nt-cut", cut !== null);
      row.number.textContent = cut ? `cut: ${cut}` : share(result.p[i]);
      three.forEach((one, k) => row.kept[k].classList.toggle("mll-nt-on", !one.cut[i] && setting.temperature > 0));
      const known = here.children.has(here.next.ids[i]);
      row.button.classList.toggle("mll-nt-known", known);
      row.button.setAttribute("aria-label", [
        `${i + 1}: ${visible(row.text)}${row.special ? ", special token" : ""}`, `model ${share(row.p)}`,
        cut ? `cut by ${cut}` : `drawn ${share(result.p[i])}`, known ? "in the tree" : "",
      ].filter(Boolean).join(", "));
    });
    const shown = rows.length;
    const others = 1 - sum(rows.map((row) => row.p));
    const keptOthers = sum(result.p.slice(shown)) + sum(result.binP.map((p, j) => p * result.left[j]));
    rest.textContent = here.next.size > shown
      ? `${whole(here.next.size - shown)} more tokens: model ${share(Math.max(0, others))}, drawn ${share(keptOthers)}`
      : "";
    heading.replaceChildren("After ", token(here.text, { class: here.special ? "mll-nt-special" : "" }),
      `: entropy of the model ${bits(here.next.entropy)}, of what is drawn ${bits(result.entropy)}`);
  }

  // ---- going on

  function child(parent, i) {
    const { ids, texts, special, logits, total } = parent.next;
    return parent.children.get(ids[i]) ?? newNode({
      id: ids[i], text: texts[i], special: special.includes(i), logprob: logits[i] - total,
    }, parent, false);
  }

  /** Go to a node, new or not; `focus` when the input was on a bar that goes away. */
  async function into(node, focus = false) {
    if (!node) return;
    const mine = ++ticket;
    if (node.next) say(null);
    else {
      root.setAttribute("aria-busy", "true");
      const answer = await get("after", { at: node.at, branch: node.branch });
      root.removeAttribute("aria-busy");
      if (!answer || gone) return;
      arrive(node, answer);
    }
    node.parent?.children.set(node.id, node);
    if (mine !== ticket) return showTree();
    here = node;
    if (!isOn(node, leaf)) leaf = node;
    for (let up = node.parent; up; up = up.parent) up.open = true;
    const inBars = focus && bars.contains(document.activeElement);
    show();
    if (inBars) rows[0].button.focus({ preventScroll: true });
    tell(`after ${visible(node.text)}: likeliest ${visible(rows[0].text)} ${share(rows[0].p)}, `
      + `entropy ${bits(node.next.entropy)}`);
  }
  function arrive(node, next) {
    node.next = next;
    node.entropy = next.entropy;
  }
  const isOn = (node, end) => { for (; end; end = end.parent) if (end === node) return true; return false; };

  const seed = h("input", { type: "number", min: 0, max: 4294967295, step: 1, value: 0, "aria-label": "seed" });
  async function sample() {
    const result = limit(here.next, setting);
    let aim = dart(Number(seed.value) >>> 0, here.branch.length);
    for (const [i, p] of result.p.entries()) {
      if (aim < p) return into(i < here.next.texts.length ? child(here, i) : await ranked(i));
      aim -= p;
    }
    let rank = result.p.length;
    for (const [j, p] of result.binP.entries()) {
      if (aim < p * result.left[j]) return into(await ranked(rank + Math.floor(aim / p)));
      aim -= p * result.left[j];
      rank += here.next.counts[j];
    }
    return into(child(here, 0)); // rounding alone comes here
  }
  /** A token too far down for its text to be here already. */
  async function ranked(rank) {
    const parent = here;
    const one = await get("rank", { at: parent.at, branch: parent.branch, rank });
    return one && (parent.children.get(one.id) ?? newNode(one, parent, false));
  }
  const back = button("back", () => { if (here.parent?.at) into(here.parent); });

  // ---- the text so far, with its surprises

  const strip = h("ol", { class: "mll-nt-strip", "aria-label": "text so far" });
  const aboutToken = h("p", { class: "mll-note" });
  const aboutPath = h("p", { class: "mll-note" });
  const more = button("measure the rest of the start", () => measure(Infinity), { hidden: true });
  let chips = [];

  const path = (end) => { const all = []; for (; end; end = end.parent) all.unshift(end); return all; };
  const surprise = (node) => (node.logprob === undefined ? undefined : -node.logprob / Math.LN2);
  function spoken(node, i) {
    const before = node.parent?.entropy;
    return `token ${i + 1}: ${visible(node.text)}${node.special ? ", special token" : ""}, ` + (node.parent
      ? `surprise ${bits(surprise(node))}, entropy before it ${bits(before)}` : "the first, which nothing predicts");
  }
  function showStrip() {
    const all = path(leaf);
    const first = Math.max(0, all.length - data.along);
    chips = all.slice(first).map((node, k) => {
      const chip = { node, surprise: h("i", { class: "mll-nt-surprise" }), entropy: h("i", { class: "mll-nt-entropy" }) };
      chip.button = h("button", {
        type: "button", class: "mll-nt-chip", tabindex: node === here ? 0 : -1,
        "aria-current": node === here ? "true" : null,
        onclick: () => into(node), onfocus: () => { aboutToken.textContent = spoken(node, first + k); },
        onmouseenter: () => { aboutToken.textContent = spoken(node, first + k); },
      }, h("span", { class: "mll-nt-two", "aria-hidden": "true" }, chip.surprise, chip.entropy),
      token(node.text, { class: node.special ? "mll-nt-special" : "" }));
      if (!node.given) chip.button.classList.add("mll-nt-own");
      chip.label = () => chip.button.setAttribute("aria-label", spoken(node, first + k));
      return chip;
    });
    strip.replaceChildren(
      ...(first ? [h("li", { class: "mll-note" }, `${whole(first)} tokens, then`)] : []),
      ...chips.map((chip) => h("li", {}, chip.button)));
    paintStrip();
    strip.scrollTop = strip.scrollHeight;
  }
  function paintStrip() {
    const highest = Math.max(8, ...chips.map(({ node }) => Math.max(surprise(node) ?? 0, node.parent?.entropy ?? 0)));
    for (const chip of chips) {
      const set = (bar, x) => {
        bar.hidden = x === undefined;
        bar.style.height = `${Math.max(1, 40 * (x ?? 0) / highest)}px`;
      };
      set(chip.surprise, surprise(chip.node));
      set(chip.entropy, chip.node.parent?.entropy);
      chip.label();
    }
    const chosen = path(leaf).filter((node) => !node.given);
    const logprob = sum(chosen.map((node) => node.logprob));
    aboutPath.textContent = chosen.length
      ? `Chosen: ${chosen.length} token${chosen.length > 1 ? "s" : ""}, ln p ${signed(logprob)} together, `
        + `${bits(-logprob / Math.LN2 / chosen.length)} of surprise a token.`
      : "Choose a token below, and the text goes on from there.";
  }
  arrows(strip, (dx, dy) => {
    const at = chips.findIndex((chip) => chip.button === document.activeElement);
    const to = clamp(at + clamp(dx + dy, -chips.length, chips.length), 0, chips.length - 1);
    chips.forEach((chip, i) => chip.button.setAttribute("tabindex", i === to ? 0 : -1));
    chips[to].button.focus();
  });

  /** Ask for the surprises of the start, one at a time: the kernel has other work, too. */
  async function measure(patience) {
    const begun = performance.now();
    more.hidden = true;
    const wanted = start.slice(-data.along - 1, -1).filter((node) => node.children.size && start[node.at].logprob === undefined);
    for (const node of wanted.reverse()) { // the latest first: they are in sight
      if (performance.now() - begun > patience) { more.hidden = false; return; }
      try {
        const { entropy, logprob } = await ask("along", { at: node.at });
        node.entropy = entropy;
        start[node.at].logprob = logprob;
      } catch {
        if (saved) continue; // that one was not recorded
        return;
      }
      if (gone) return;
      paintStrip();
    }
  }

  // ---- the tree

  const tree = h("div", { class: "mll-nt-tree", role: "tree", "aria-label": "continuations" });
  let items = [];

  /** Tokens of the start stand in one line, as far as no branch leaves it. */
  function runOf(node) {
    const run = [node];
    while (run.at(-1).children.size === 1 && run.at(-1).given) {
      const [only] = run.at(-1).children.values();
      if (!only.given) break;
      run.push(only);
    }
    return run;
  }
  function collect(first, up, indent, index, count) {
    const run = runOf(first);
    const node = run.at(-1);
    const item = { run, node, up, indent, index, count, level: (up?.level ?? 0) + 1 };
    items.push(item);
    const children = [...node.children.values()];
    if (!node.open) return;
    // A line of only children stays where it is: a long text would leave the window.
    const deeper = indent + (children.length > 1 || count > 1 || !up ? 1 : 0);
    children.forEach((child, i) => collect(child, item, deeper, i + 1, children.length));
  }
  function newItem(item) {
    const { run, node } = item;
    const inner = node.children.size > 0;
    const words = run.slice(-SHOWN).map((one) => token(one.text, { class: one.special ? "mll-nt-special" : "" }));
    const selected = run.includes(here);
    const p = node.given ? null : node.logprob;
    item.node_ = h("div", {
      class: "mll-nt-item", role: "treeitem", tabindex: selected ? 0 : -1, "aria-level": item.level,
      "aria-setsize": item.count, "aria-posinset": item.index, "aria-selected": selected ? "true" : "false",
      "aria-expanded": inner ? String(node.open) : null, style: { paddingLeft: `${4 + 14 * Math.min(item.indent, 12)}px` },
      "aria-label": `${run.slice(-SHOWN).map((one) => visible(one.text)).join("")}`
        + (p === null ? ", given" : `, ln p ${signed(p)}, probability ${share(Math.exp(p))}`),
      onclick: () => into(node),
    }, h("span", {
      class: "mll-nt-twist", "aria-hidden": "true",
      onclick: (event) => { if (inner) { event.stopPropagation(); node.open = !node.open; showTree(); } },
    }, inner ? (node.open ? "▾" : "▸") : "·"),
    run.length > SHOWN ? h("span", {}, "…") : null, words,
    h("span", { class: "mll-nt-logprob" }, p === null ? "given" : `${signed(p)}`));
    item.node_.classList.toggle("mll-nt-onpath", isOn(node, leaf));
    return item.node_;
  }
  function showTree() {
    const had = tree.contains(document.activeElement);
    items = [];
    collect(start[0], null, 0, 1, 1);
    tree.replaceChildren(...items.map(newItem));
    const selected = items.find((item) => item.run.includes(here));
    if (!selected) tree.firstChild.setAttribute("tabindex", 0); // it is in a closed branch
    if (had) (selected ?? items[0]).node_.focus();
    selected?.node_.scrollIntoView?.({ block: "nearest" });
  }
  arrows(tree, (dx, dy) => {
    const at = items.findIndex((item) => item.node_ === document.activeElement);
    const item = items[at];
    const to = (one) => { one.node_.focus({ preventScroll: true }); into(one.node); };
    if (dy) return to(items[clamp(at + clamp(dy, -items.length, items.length), 0, items.length - 1)]);
    if (Math.abs(dx) === Infinity) return to(items[dx < 0 ? 0 : items.length - 1]);
    if (dx < 0 && item.node.open && item.node.children.size) return fold(item, false);
    if (dx < 0) return item.up && to(item.up);
    if (!item.node.children.size) return undefined;
    return item.node.open ? to(items[at + 1]) : fold(item, true);
  });
  tree.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    const item = items.find((one) => one.node_ === document.activeElement);
    if (item) into(item.node);
  });
  function fold(item, open) {
    item.node.open = open;
    if (!open && !item.run.includes(here) && isOn(item.node, here)) here = item.node;
    show();
    tell(open ? "opened" : "closed");
  }

  /** Branches that were opened before: in another output, or before the page was saved. */
  async function recall() {
    const { nodes } = await ask("opened").catch(() => ({ nodes: [] }));
    for (const one of nodes) {
      let parent = start[one.at - 1];
      for (const id of one.branch.slice(0, -1)) parent = parent?.children.get(id);
      if (!parent) continue;
      const { at, branch, ...about } = one;
      if (!parent.children.has(about.id)) parent.children.set(about.id, newNode(about, parent, false));
    }
    if (nodes.length && !gone) show();
  }

  function show() {
    fill();
    paint();
    showStrip();
    showTree();
    back.disabled = !here.parent;
  }

  arrive(here, data.first);
  root.append(
    h("section", { "aria-label": "text" }, strip,
      h("p", { class: "mll-note mll-nt-key" }, h("i", { class: "mll-nt-surprise" }), " surprise of the token ",
        h("i", { class: "mll-nt-entropy" }), " entropy before it (bits). Enter on a token shows what may follow it. ", more),
      aboutToken, aboutPath),
    h("div", { class: "mll-row mll-nt-sliders" }, Object.values(sliders).map((one) => one.node)),
    h("div", { class: "mll-row" }, button("take the likeliest", () => into(child(here, 0))),
      button("sample one", sample), h("label", { class: "mll-choice" }, h("span", {}, "seed"), seed), back,
      button("reset sliders", reset)),
    h("div", { class: "mll-nt-columns" },
      h("section", { "aria-label": "next token" }, heading, head, bars, rest),
      h("section", { "aria-label": "branches and limits" },
        h("p", { class: "mll-note" }, "Continuations, with ln p of each token"), tree, keepsTable, code)));
  show();
  recall().then(() => measure(PATIENCE));
}

export default framed(drawNextToken);
