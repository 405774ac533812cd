// A chat that streams: each token shaded by its probability, with what else it might
// have been.

function drawChat({ root, data, ask, say, tell, onResize, onTheme, onLeave, saved }) {
  let running = false;
  let gone = false;
  onLeave(() => { gone = true; });
  const shades = []; // [node, probability], to paint again in another theme
  let current = null; // the token that Tab comes to

  const log = h("div", { class: "mll-cb-log", role: "log", "aria-label": "conversation", tabindex: 0 });
  const about = h("div", { class: "mll-cb-about" });
  const field = h("textarea", {
    rows: 2, "aria-label": "message", dir: "auto", disabled: saved, class: "mll-cb-field",
    placeholder: saved ? "" : "Enter sends, Shift+Enter begins a new line",
    onkeydown: (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      send();
    },
  });
  const sendButton = button("Send", () => send(), { disabled: saved });
  const stopButton = button("Stop", () => stop(), { disabled: true });
  const forgetButton = button("Start over", () => forget(), { disabled: saved });

  // ---- one token

  const known = (p) => p !== null && p !== undefined;
  const chance = (p) => (known(p) ? `${(100 * p).toFixed(p < 0.0995 ? 2 : 1)} %` : "unknown");
  function shade(node, p, dark = isDark(root)) {
    if (!known(p)) return;
    // A bit of surprise is a step darker, seven the most; and a line, for other eyes.
    const t = Math.min(1, -Math.log2(Math.max(p, 1e-9)) / 7);
    const colour = ramp(0.75 * t, dark);
    node.style.backgroundColor = t < 0.02 ? "" : css(colour);
    node.style.color = t < 0.02 ? "" : inkOn(colour);
    node.dataset.rank = p >= 0.5 ? "likely" : p >= 0.1 ? "open" : "rare";
  }
  function newPiece(piece) {
    const node = h("span", { class: "mll-cb-piece", tabindex: -1 }, piece.text);
    const look = () => explain(piece, node);
    node.addEventListener("focus", look);
    node.addEventListener("mouseenter", look);
    shade(node, piece.probability);
    shades.push([node, piece.probability]);
    return node;
  }
  function explain(piece, node) {
    if (current) current.setAttribute("tabindex", -1);
    current = node;
    node.setAttribute("tabindex", 0);
    const { text, probability, top } = piece;
    about.replaceChildren(
      h("p", { class: "mll-note" }, token(text), ` had probability ${chance(probability)}`,
        top.length ? "; the likeliest were" : ""),
      h("ol", { class: "mll-cb-top" }, top.map(([other, p]) => h("li", {
        class: other === text ? "mll-cb-same" : "",
      }, token(other), h("span", { class: "mll-cb-bar" }, h("i", { style: { width: `${100 * p}%` } })),
      h("span", {}, chance(p)), other === text ? h("span", {}, "taken") : null))));
    if (node === document.activeElement) {
      const others = top.map(([other, p]) => `${visible(other)} ${chance(p)}`).join(", ");
      tell(`${visible(text)}, probability ${chance(probability)}${others ? `; likeliest: ${others}` : ""}`);
    }
  }
  arrows(log, (dx, dy, event) => {
    const all = [...log.querySelectorAll(".mll-cb-piece")];
    const at = all.indexOf(document.activeElement);
    if (at < 0) { // the log itself
      if (event.key === "ArrowRight" || event.key === "ArrowDown") all[0]?.focus();
      if (event.key === "ArrowLeft" || event.key === "ArrowUp") all.at(-1)?.focus();
      return;
    }
    all[clamp(at + clamp(dx + dy, -all.length, all.length), 0, all.length - 1)].focus();
  });

  // ---- the conversation

  function newMessage(role) {
    const body = h("div", { class: "mll-cb-body", dir: "auto" });
    const node = h("div", { class: `mll-cb-message mll-cb-${role === "user" ? "user" : "other"}` },
      h("b", { class: "mll-cb-role" }, role), body);
    log.append(node);
    return { node, body };
  }
  function showMessage({ role, content, pieces }) {
    const { node, body } = newMessage(role);
    if (pieces?.length) body.append(...pieces.map(newPiece));
    else body.append(content);
    return node;
  }
  function showAll(messages) {
    log.replaceChildren();
    shades.length = 0;
    current = null;
    about.replaceChildren(h("p", { class: "mll-note" }, "Point at a word of an answer, or go to it with the arrow keys: "
      + "its probability and the likeliest others are shown here."));
    messages.forEach(showMessage);
    log.scrollTop = log.scrollHeight;
  }

  function working(yes) {
    // A button that cannot be pressed any more would keep the keyboard.
    if ([sendButton, stopButton].includes(document.activeElement)) field.focus();
    running = yes;
    // Readers wait for the whole answer: a word at a time would be stammer.
    log.setAttribute("aria-busy", String(yes));
    stopButton.disabled = !yes;
    sendButton.disabled = yes;
    forgetButton.disabled = yes;
  }
  async function send() {
    const text = field.value;
    if (running) return say("One answer is still being written: wait for its end, or stop it.");
    if (!text.trim()) return say("There is nothing to send: write a question first.");
    say(null);
    field.value = "";
    working(true);
    const question = showMessage({ role: "user", content: text });
    let answer = null;
    let begun = false; // Python has heard; how long the first piece takes is the model's affair
    const part = (piece) => {
      begun = true;
      if (gone || piece.begun) return say(null);
      answer ??= newMessage("assistant");
      const below = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      answer.body.append(newPiece(piece));
      if (below) log.scrollTop = log.scrollHeight;
    };
    log.scrollTop = log.scrollHeight;
    let stopped = false;
    try {
      ({ stopped } = await ask("say", { text }, { part, slow: () => { if (!begun) say(GONE); } }));
      if (!stopped) answer ??= newMessage("assistant");
    } catch (error) {
      if (!(error instanceof Sentence)) throw error;
      say(error.message);
    }
    working(false);
    if (!answer) { // nothing came: the question is the learner's again
      question.remove();
      if (!field.value) field.value = text;
    } else {
      if (stopped) answer.node.append(h("small", { class: "mll-cb-stopped" }, "stopped"));
      tell(`${stopped ? "stopped: " : ""}${answer.body.textContent}`);
    }
  }
  function stop() {
    stopButton.disabled = true;
    field.focus();
    ask("stop", {}, { slow: () => say(GONE) }).catch((error) => say(error.message));
  }
  async function forget() {
    try {
      await ask("forget");
      showAll(data.messages);
      say(null);
      field.focus();
      tell("a new conversation");
    } catch (error) {
      say(error.message);
    }
  }
  /** What was said since: in another output, or before the page was saved. */
  async function recall() {
    const { messages } = await ask("conversation").catch(() => ({}));
    if (messages && !gone && !running) showAll(messages);
  }

  const key = h("p", { class: "mll-note mll-cb-key" }, "the less likely, the stronger: ",
    [0.9, 0.4, 0.05, 0.005].map((p) => {
      const node = h("span", { class: "mll-cb-piece" }, chance(p));
      shade(node, p);
      shades.push([node, p]);
      return node;
    }));
  const keyShades = [...shades];
  function repaint() {
    const dark = isDark(root);
    [...keyShades, ...shades].forEach(([node, p]) => shade(node, p, dark));
  }
  onTheme(repaint);
  onResize(repaint); // also when the notebook puts this into its page: only then a theme is known
  root.append(log, key, about, saved
    ? h("p", { class: "mll-note" }, "This saved page has no Python behind it: the conversation can be read, not continued.")
    : h("div", { class: "mll-cb-ask" }, field, h("div", { class: "mll-row" }, sendButton, stopButton, forgetButton)));
  showAll(data.messages);
  recall();
}

export default framed(drawChat);
