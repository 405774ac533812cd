"""docs/benchmarks.md and its plots, out of the raw figures."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.conduct import PROBE
from benchmarks.figures import Figure, bootstrap, quartiles
from benchmarks.results import ROOT, seconds_of
from benchmarks.rows import ROWS, Row, Target

PAGE = ROOT / "docs" / "benchmarks.md"
NOTES = ROOT / "docs" / "benchmarks" / "notes.md"
PICTURES = ROOT / "docs" / "pictures"
COMMAND = "make bench"

HEAD = """# minillama beside its peers

Made by `{command}`, {when}.
{machines}

Decoding is reading weights and prefill is multiplying, so the physical bound stands
beside every figure: the bytes that a token must read over the memory's bandwidth, or
the operations over the multiplications a second that the machine does. Both were
measured in the same rounds, and the best of them counts.

## What was asked for

A ratio comes from medians over interleaved rounds; in brackets is the interval that
holds it 95 times in 100 (whole rounds resampled). "Published" stands where nothing was
asked for.

| work | figure | measured | asked for | reached |
|---|---|---|---|---|
{targets}

![{alt}](pictures/bench_ratios.png)
"""

HOW = """## How it was measured

- Each contender is a process of its own, which loads its model once and is warmed. In
  every round each of them runs once, in an order that a seed shuffles; the machine is
  measured in the same rounds. Contenders of the 8B rows take turns as whole processes.
- All have {threads} threads. OMP_WAIT_POLICY is {wait} for every contender that uses
  PyTorch, and {llama_wait} for llama.cpp, whose threads meet some twenty times a layer
  ("default": it is not set).
- All decode greedily from the same 100 tokens of the same stories. The weights are
  those of one file: SmolLM2's GGUF file, or the same rounded to bfloat16 in a folder. A
  turn writes some tokens one by one, goes back to the end of the prompt untimed, and
  counts forward pass, argmax and the way to the next token.
- Prefill fills an empty cache; every library computes the logits of the last token
  alone, if it can.
- Not counted are the peers' own loops (`generate`, sampler chains), which cost more.

| contender | what runs |
|---|---|
| minillama int4 | `load("smollm2-135m", quantize="int4", compile=True)`, `prefill`, \
`decode_step` |
| minillama bf16 | `load(folder, compile=True)`, `prefill`, `decode_step`; "not \
compiled" is the core as the notebooks build it |
| transformers | `AutoModelForCausalLM.from_pretrained(folder, dtype=...)`, called \
with a `DynamicCache`; `logits_to_keep=1` in prefill |
| llama.cpp | `llama_cpp.Llama(file, n_threads=..., n_threads_batch=...)`, `eval`, \
argmax of its logits; built from source for this processor; the package's defaults \
otherwise, which leave flash attention off |
| llama.cpp, flash attention | the same with `flash_attn=True` |
| llms-from-scratch | `Llama3Model` of its `kv_cache.llama3` or, without a cache, of \
its `llama3` |
| the machine | a sum over 256 MB of float32; products of square matrices, the best \
size |

No GPU has run any of this yet. What will, on a machine that has one, is
`minillama bench llama3-8b --random --every --device cuda`: tokens a second, GB/s and
the share of the bound in bf16, int8 and int4, on random weights that it makes there.

Training: 16 x 128 tokens, the same first weights, AdamW with the same groups, betas and
clipping; a turn is three steps. A share above 100 % of the compute bound is possible:
integer products are faster than the float products that the bound is measured with.
"""


def write(found: Mapping[str, Any]) -> None:
    """Write the page and the plots."""
    done = [row for row in ROWS if row.name in found["rows"]]
    if not done:
        raise SystemExit("no row has been measured yet: run python -m benchmarks")
    PAGE.write_text(page(found, done, notes()), encoding="utf-8")
    from benchmarks import plots

    PICTURES.mkdir(parents=True, exist_ok=True)
    plots.write(found, done, PICTURES)


def notes() -> dict[str, str]:
    """What was written by hand about a row, by its name; "" is about all."""
    if not NOTES.exists():
        return {}
    first, *parts = ("\n" + NOTES.read_text("utf-8")).split("\n## ")
    pairs = (part.split("\n", 1) for part in parts)
    return {"": first.strip()} | {p[0].strip(): p[1].strip() for p in pairs if p[1:]}


def page(
    found: Mapping[str, Any], done: Iterable[Row], by_hand: Mapping[str, str]
) -> str:
    done = list(done)
    raw = [found["rows"][row.name] for row in done]
    body = [
        HEAD.format(
            command=COMMAND,
            when=when(raw),
            machines=machines(raw),
            targets="\n".join(target_lines(found, done)),
            alt=alt_of_ratios(found, done),
        ),
        by_hand.get("", ""),
        "## The rows",
    ]
    for row in done:
        body += [section(row, found["rows"][row.name]), by_hand.get(row.name, "")]
    body.append(
        HOW.format(
            threads=" or ".join(sorted({str(r["threads"]) for r in raw})),
            wait=" or ".join(sorted({r["wait"] for r in raw})),
            llama_wait=" or ".join(sorted({r["llama_wait"] for r in raw})),
        )
    )
    return "\n\n".join(part.strip() for part in body if part.strip()) + "\n"


def when(raw: list[Mapping[str, Any]]) -> str:
    days = sorted({row["when"][:10] for row in raw})
    said = days[0] if len(days) == 1 else f"between {days[0]} and {days[-1]}"
    return said + ("; a quick run, with rough figures" if any_quick(raw) else "")


def any_quick(raw: Iterable[Mapping[str, Any]]) -> bool:
    return any(row["quick"] for row in raw)


def machines(raw: Iterable[Mapping[str, Any]]) -> str:
    lines: dict[str, None] = {}
    for row in raw:
        versions = ", ".join(f"{k} {v}" for k, v in row["versions"].items())
        lines[f"Machine: {row['machine']}.\nVersions: {versions}."] = None
    return "\n".join(lines)


def figure_of(target: Target, raw: Mapping[str, Any]) -> Figure | None:
    """The target's figure, or None where a contender of it failed."""
    try:
        return bootstrap(seconds_of(raw), target.figure)
    except KeyError:
        return None


def target_lines(found: Mapping[str, Any], done: Iterable[Row]) -> Iterable[str]:
    for row in done:
        for target in row.targets:
            figure = figure_of(target, found["rows"][row.name])
            yield target_line(row, target, figure)


def target_line(row: Row, target: Target, figure: Figure | None) -> str:
    if target.wanted is None:
        wanted, reached = "-", "published"
    else:
        sign = "at most" if target.least_is_best else "at least"
        wanted = f"{sign} {target.wanted:g}"
        good = figure and target.reached(figure.value)
        reached = "not measured" if figure is None else "yes" if good else "**no**"
    measured = "-" if figure is None else shown(figure)
    return f"| {row.title} | {target.says} | {measured} | {wanted} | {reached} |"


def shown(figure: Figure) -> str:
    return f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]"


def section(row: Row, raw: Mapping[str, Any]) -> str:
    """One table: every contender of a row, and the bound beside it."""
    seconds, lines = seconds_of(raw), list[str]()
    first: dict[Any, list[int]] = {}  # by context: what the first contender wrote
    for entry in raw["entries"].values():
        first.setdefault(entry.get("context"), entry.get("ids", []))
    for key, entry in raw["entries"].items():
        if key == PROBE:
            continue
        if "error" in entry:
            lines.append(f"| {key} | failed: {entry['error']} | | | | | |")
            continue
        wrote = first[entry.get("context")]
        lines.append(contender_line(row, key, entry, seconds, wrote))
    head = (
        f"| contender | ms a {row.unit} | quartiles | {row.unit}s a second | the bound "
        "| share of it | peak memory | same tokens |\n|---|---|---|---|---|---|---|---|"
    )
    probe = raw["entries"][PROBE]
    rounds = len(probe["bandwidth"])
    about = (
        f"{rounds} rounds. The machine at its best: "
        f"{digits(max(probe['bandwidth']) / 1e9)} GB/s, "
        f"{digits(max(probe['float32']) / 1e9)} GFLOP/s in float32, "
        f"{digits(max(probe['bfloat16']) / 1e9)} in bfloat16. "
        f"Load average at the end: {raw['load']:.1f}."
    )
    picture = f"pictures/bench_{row.name.replace('-', '_')}.png"
    alt = f"Bars: {row.unit}s a second of each contender, as in the table"
    parts = [f"### {row.title}\n", head, *lines, "", about, "", f"![{alt}]({picture})"]
    return "\n".join(parts)


def contender_line(
    row: Row,
    key: str,
    entry: Mapping[str, Any],
    seconds: Mapping[str, list[float]],
    first: Sequence[int],
) -> str:
    low, middle, high = (q * 1e3 for q in quartiles(entry["seconds"]))
    bound, share = "-", "-"
    if f"{key} bound" in seconds:
        least = median(seconds[f"{key} bound"])
        bound = f"{digits(1 / least)} {row.unit}s/s"
        share = f"{least * 1e3 / middle:.0%}"
    return (
        f"| {key} | {digits(middle)} | {digits(low)} - {digits(high)} "
        f"| {digits(1e3 / middle)} | {bound} | {share} "
        f"| {max(entry['peak']) / 1e9:.2f} GB | {same(first, entry.get('ids', []))} |"
    )


def same(ids: Sequence[int], others: Sequence[int]) -> str:
    """How many tokens two contenders have in common before the first that differs."""
    most = min(len(ids), len(others))
    equal = (i for i in range(most) if ids[i] != others[i])
    return f"{next(equal, most)} of {most}" if most else "-"


def digits(number: float) -> str:
    """Three significant digits, without an exponent."""
    if number >= 100:
        return f"{float(f'{number:.3g}'):,.0f}"
    return f"{number:.3g}"


def alt_of_ratios(found: Mapping[str, Any], done: Iterable[Row]) -> str:
    """What the plot of ratios shows, for those who do not see it."""
    said: list[str] = []
    for row in done:
        for target in row.targets:
            figure = figure_of(target, found["rows"][row.name])
            if figure and target.wanted is not None:
                said.append(f"{target.says} {figure.value:.2f} ({target.wanted:g})")
    return "Each figure beside what was asked for, in brackets: " + "; ".join(said)
