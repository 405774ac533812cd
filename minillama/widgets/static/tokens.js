// Coloured tokens of one text under one or more tokenizers, with ids and bytes.

function drawTokens({ root, data, get, tell, saved }) {
  let rows = data.rows;
  const field = h("textarea", {
    rows: 2, "aria-label": "text", disabled: saved, dir: "auto", spellcheck: "false",
    style: { width: "100%" },
    oninput: () => { clearTimeout(waiting); waiting = setTimeout(renew, 80); },
  });
  field.value = data.text;
  let waiting = 0;
  const lists = h("div", {});
  const about = h("p", { class: "mll-note" }, "Arrow keys go from token to token.");

  async function renew() {
    const answer = await get("encode", { text: field.value });
    if (!answer) return;
    rows = answer.rows;
    show();
    tell(rows.map((row) => `${row.name}: ${row.tokens.length} tokens`).join(", "));
  }

  function say(row, i) {
    const one = row.tokens[i];
    about.replaceChildren(`token ${i + 1} of ${row.tokens.length} in ${row.name}: `,
      token(one.text), `, id ${one.id}, bytes ${one.bytes}`);
    tell(about.textContent);
  }

  function show() {
    lists.replaceChildren(...rows.map((row) => {
      const size = new TextEncoder().encode(field.value).length;
      const share = row.tokens.length ? (size / row.tokens.length).toFixed(2) : "0";
      const chips = row.tokens.map((one, i) => h("li", {
        class: `mll-chip mll-chip-${i % 4}`, tabindex: i ? -1 : 0,
        "aria-label": `${visible(one.text)}, id ${one.id}`,
        title: `id ${one.id}, bytes ${one.bytes}`,
        onfocus: () => say(row, i), onmouseenter: () => say(row, i),
      }, token(one.text), h("small", {}, String(one.id))));
      const list = h("ul", { class: "mll-chips", "aria-label": `tokens of ${row.name}` }, chips);
      arrows(list, (dx, dy) => {
        const at = chips.indexOf(document.activeElement);
        const to = chips[clamp(at + dx + dy, 0, chips.length - 1)];
        chips.forEach((chip) => chip.setAttribute("tabindex", chip === to ? 0 : -1));
        to?.focus();
      });
      return h("section", {},
        h("p", { class: "mll-note" }, h("b", {}, row.name),
          ` ${row.tokens.length} tokens, ${share} bytes a token`),
        row.sentence ? h("p", { class: "mll-sentence" }, row.sentence) : list);
    }));
  }

  root.append(field, lists, about);
  show();
}

export default framed(drawTokens);
