"""play: a learner's part in a model with real weights, beside the library's own."""

import pytest
import torch
from loud import make_loud, small_config
from torch import Tensor, nn

import minillama.attention
from minillama.cache import KVCache
from minillama.capture import explicit_attend
from minillama.course import play, real_model
from minillama.model import Llama
from minillama.rope import apply_rope, rope_frequencies
from minillama.tokenizer import train_bpe
from minillama.weights import save_weights

TEXT = "the dog saw the cat and it ran. the cat saw the dog and it ran, too. " * 4


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """More cost more than they bring: the model is tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small loud model that knows no dialogue, with a tokenizer of its own."""
    path = tmp_path_factory.mktemp("small")
    tokenizer = train_bpe(TEXT, 290)
    model = make_loud(Llama(small_config(vocab_size=tokenizer.vocab_size)))
    save_weights(model, path, tokenizer)
    return str(path)


@pytest.fixture
def played(folder, capsys):
    def run(**mine):
        result = play(model=folder, prompt="the dog saw", max_new_tokens=6, **mine)
        assert capsys.readouterr().out == result.message + "\n"
        return result

    return run


class Norm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        return x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight


class NormOfConfig(Norm):
    def __init__(self, config):
        super().__init__(config.dim, config.norm_eps)


class LayerNorm(Norm):
    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.w_gate = nn.Linear(dim, hidden_dim, bias=False)
        self.w_up = nn.Linear(dim, hidden_dim, bias=False)
        self.w_down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x):
        gate = self.w_gate(x)
        return self.w_down(gate * gate.sigmoid() * self.w_up(x))


class Attention(nn.Module):
    """As in notebook 04: it knows no cache yet."""

    def __init__(self, config):
        super().__init__()
        self.width, self.n_rep = config.head_dim, config.n_rep
        kv_dim = config.n_kv_heads * config.head_dim
        self.wq = nn.Linear(config.dim, config.n_heads * config.head_dim, bias=False)
        self.wk = nn.Linear(config.dim, kv_dim, bias=False)
        self.wv = nn.Linear(config.dim, kv_dim, bias=False)
        self.wo = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=False)

    def forward(self, x, rope, mask):
        parts = [
            w(x).unflatten(-1, (-1, self.width)) for w in (self.wq, self.wk, self.wv)
        ]
        q, k, v = (part.transpose(1, 2) for part in parts)
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        return self.wo(my_attend(q, k, v, mask).transpose(1, 2).flatten(2))


def my_attend(q, k, v, mask):
    return explicit_attend(q, k, v, mask)[0]


def halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def my_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)


def swiglu(x, w_gate, w_up, w_down):
    return (nn.functional.silu(x @ w_gate.T) * (x @ w_up.T)) @ w_down.T


@pytest.mark.parametrize(
    "mine",
    [
        {"norm": Norm},
        {"norm": NormOfConfig},
        {"norm": lambda config: Norm(config.dim, config.norm_eps)},
        {"norm": lambda x, w, eps: x * (x.square().mean(-1, True) + eps).rsqrt() * w},
        {"feed_forward": FeedForward},
        {"feed_forward": swiglu},
        {"attention": Attention},
        {"apply_rope": my_rope},
        {"rope_frequencies": lambda dh, t: t ** (-torch.arange(0, dh, 2) / dh)},
        {"causal_mask": lambda new, seen: torch.ones(seen, seen).tril()[-new:].bool()},
        {"attend": my_attend},
        {"sample": lambda logits: logits.argmax(-1)},
        {"sample": lambda logits, history: int(logits[0].argmax())},
        {"cache": KVCache},
        {"norm": Norm, "attention": Attention, "feed_forward": FeedForward},
        {"norm": Norm, "attend": my_attend, "apply_rope": my_rope, "cache": KVCache},
    ],
)
def test_a_right_part_gives_the_same_reply(played, mine):
    result = played(**mine)
    assert result.ok, result.message
    assert result.first_difference is None
    assert result.logit_error < 1e-3
    assert result.reply == result.library
    assert result.message.endswith("ok: the same 6 tokens, and logits within 0.001")


def no_mask(q, k, v, mask):
    return my_attend(q, k, v, None)


def tiled(q, k, v, mask):
    n = q.shape[1] // k.shape[1]
    return my_attend(q, k.repeat(1, n, 1, 1), v.repeat(1, n, 1, 1), mask)


def forgets(shape, dtype, device):
    class Last(KVCache):
        def update(self, k, v):
            super().update(k, v)
            return k, v

    return Last(shape, dtype, device)


@pytest.mark.parametrize(
    "mine",
    [
        {"norm": LayerNorm},
        {"apply_rope": halves},
        {"rope_frequencies": lambda dh, theta: rope_frequencies(dh, 2 * theta)},
        {"causal_mask": lambda new, seen: torch.ones(new, seen).bool()},
        {"attend": no_mask},
        {"attend": tiled},
        {"feed_forward": lambda x, g, u, d: swiglu(x, u, g, d)},
        {"sample": lambda logits: logits.argmin(-1)},
    ],
)
def test_a_wrong_part_is_seen(played, mine):
    result = played(**mine)
    assert not result.ok
    if result.first_difference is not None:
        assert f"token {result.first_difference + 1} is the first" in result.message
        assert result.message.count("<- first difference") == 1
    else:
        assert "the same by luck" in result.message


def test_a_small_error_is_seen_though_the_tokens_are_the_same(played):
    class Eps(Norm):
        def __init__(self, dim):
            super().__init__(dim, 0.02)

    result = played(norm=Eps)
    assert not result.ok
    assert result.logit_error > 1e-3


def test_the_reply_is_made_not_read_off_the_librarys(played, folder):
    answer = real_model._answer(folder, "the dog saw", 6)
    whole = len(answer.ids + answer.new)

    def slightly(q, k, v, mask):
        return my_attend(q, k, v, mask) * 1.0005

    def only_in_hindsight(q, k, v, mask):
        return slightly(q, k, v, mask) * (q.shape[2] == whole)

    assert played(attend=slightly).status == "logits"
    assert played(attend=only_in_hindsight).first_difference == 0


def test_the_models_own_attention_is_as_it_was_even_after_an_error(played):
    def breaks(x, cos, sin):
        return x @ cos.nothing

    result = played(apply_rope=breaks)
    assert result.status == "exception"
    assert "look: AttributeError: 'Tensor' object has no attribute 'nothing'" in (
        result.message
    )
    assert "return x @ cos.nothing" in result.message
    assert "minillama" not in result.message
    assert minillama.attention.apply_rope is apply_rope
    played(attend=no_mask)
    assert played(norm=Norm).ok


def test_a_learners_part_cannot_change_the_librarys_weights(played):
    class Growing(Norm):
        def forward(self, x):
            self.weight.data.mul_(1.5)
            return super().forward(x)

    assert not played(norm=Growing).ok
    assert played(norm=Norm).ok


class Stub(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x): ...


def empty(x, cos, sin): ...


def to_do(x, cos, sin):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("mine", "part"),
    [
        ({"norm": Stub}, "norm: Stub is still empty"),
        ({"norm": ...}, "norm: nothing is handed in"),
        ({"apply_rope": empty}, "apply_rope: empty is still empty"),
        ({"apply_rope": to_do}, "raise NotImplementedError"),
        ({"attend": lambda q, k, v, mask: None}, "still empty"),
    ],
)
def test_what_is_not_written_yet(played, mine, part):
    result = played(**mine)
    assert (result.status, result.ok) == ("not attempted", False)
    assert part in result.message


def test_a_stub_loads_no_model(capsys):
    result = play(norm=Stub, model="no such model")
    assert capsys.readouterr().out == "not attempted yet: norm: Stub is still empty\n"
    assert result.status == "not attempted"


@pytest.mark.parametrize(
    ("mine", "part"),
    [
        ({"norm": nn.Linear}, "wants (in_features, out_features): play can give"),
        ({"norm": 3}, "norm is an int: hand in the class itself"),
        ({"norm": lambda config: 3}, "should be an nn.Module"),
        ({"norm": lambda config: nn.Linear(4, 4)}, "`weight` has shape (4, 4)"),
        ({"norm": lambda config: nn.LayerNorm(config.dim)}, "no parameter `bias` here"),
        ({"attend": 3}, "an int is no function"),
        ({"attention": lambda x: x}, "attention must be a class"),
    ],
)
def test_what_cannot_be_put_in_is_said(played, mine, part):
    result = played(**mine)
    assert not result.ok
    assert part in result.message


def test_an_endless_part_is_stopped(played, monkeypatch):
    monkeypatch.setattr(real_model, "_SECONDS", 0.3)

    def endless(x, cos, sin):
        while True:
            x = x + 1

    result = played(apply_rope=endless)
    assert result.status == "too slow"
    assert minillama.attention.apply_rope is apply_rope


def test_a_tokenizer_of_the_learners(played, folder):
    library = real_model._loaded(folder)[1]

    class Mine:
        def encode(self, text):
            return library.encode(text)

    assert played(tokenizer=Mine()).ok
    assert played(tokenizer=library.encode).ok
    result = played(tokenizer=lambda text: list(text.encode()))
    assert (result.ok, result.status) == (False, "tokenizer")
    assert "gives 11 ids for the prompt" in result.message


def test_random_numbers_outside_stay_as_they_were(played):
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    played(norm=Norm, feed_forward=FeedForward)
    assert torch.equal(torch.rand(2), want)


def test_nothing_or_too_much_is_refused(folder):
    with pytest.raises(ValueError, match="give a part of your own"):
        play(model=folder)
    with pytest.raises(ValueError, match="give one of the two"):
        play(model=folder, attention=Attention, attend=my_attend)


@pytest.mark.model
def test_smollm2_answers_with_a_learners_parts(smollm2_path, capsys):
    result = play(norm=Norm, feed_forward=FeedForward, attention=Attention)
    assert result.ok, result.message
    assert result.reply == "The capital of France is Paris."
    assert capsys.readouterr().out == (
        "prompt: What is the capital of France?\n"
        "smollm2-135m with your norm (Norm), attention (Attention) and feed_forward "
        "(FeedForward), beside the library's own\n"
        "     library       yours\n"
        "  1  'The'         'The'\n"
        "  2  ' capital'    ' capital'\n"
        "  3  ' of'         ' of'\n"
        "  4  ' France'     ' France'\n"
        "  5  ' is'         ' is'\n"
        "  6  ' Paris'      ' Paris'\n"
        "  7  '.'           '.'\n"
        "  8  '<|im_end|>'  '<|im_end|>'\n"
        "ok: the same 8 tokens, and logits within 0.001\n"
    )
