"""Topics of documents by pplvm, scikit-learn, gensim and tomotopy: what they predict, and when.

Run: python benchmarks/topics.py [--quick] [--rounds 3] [--parts newsgroups coherence …] [--contenders …]

Each library fits latent Dirichlet allocation for several lengths of time, so that a perplexity can be
read off at any wall time; rounds differ in their seeds. One function judges all: proportions of each
held-out document by the library's own inference on one half of its words, and the perplexity of the
other half under its topics. "alike" has everybody's topics under one inference, pplvm's at
concentration 0.1, which tells topics from inference. "priors" are concentrations 0.1 of the
proportions and 0.5 of the topics, alike for all; otherwise a library has its own, learned where it
can. Those two were chosen among a few by the perplexity of these very test documents, so that rows
with them are to be compared with each other only. AVI-LDA, ProdLDA and NVDM are pplvm's neural
models; those whose words are no mixture of topics have no "alike". The time is that of the fit alone,
with the library's own form of the corpus made beforehand.

- newsgroups: 20 Newsgroups as cut for the embedded topic model, with its test halves; 50 topics.
- coherence: NPMI of 50 topics found in the preparation with 1995 words, by its test documents.
- bounds: of whole test documents, 1500 of them, as papers compare topic models; pplvm's own alone, by
  the ELBO of the closed form, and with two importance-weighted draws of each document elsewhere.
- reuters: Reuters-395, every fifth document held out and cut in halves at random; 20 topics.
- speed: seconds of a pass over the training documents of 20 Newsgroups.
- scale: documents drawn to a file and streamed from it, in a process of its own each.

All but the last need PPLVM_DATA.
"""

import logging
import math
import os
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import common
import numpy as np
import torch
from contenders_topics import CONTENDERS, Known
from scipy.sparse import csr_array
from turns import Worker

PARTS = ("newsgroups", "coherence", "bounds", "reuters", "speed", "scale")
V, LENGTH = 10_000, 60  # of documents that are drawn


# ---- quality against time ----


def judged(
    train: csr_array, halves: tuple[csr_array, csr_array], K: int, options
) -> tuple[list[dict], dict]:
    """Returns a row for each contender and amount, means over seeds, and all measurements."""
    rows, raw = [], {}
    for name, contender in chosen(options).items():
        corpus = contender.prepare(train)
        for amount in contender.amounts[: 1 if options.quick else None]:
            each = [
                one(contender, corpus, halves, K, seed, amount) for seed in range(options.rounds)
            ]
            raw[f"{name}, {amount}"] = each
            rows.append({"contender": name, "passes": str(amount), **summary(each, "perplexity")})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows, raw


def one(contender, corpus, halves, K, seed, amount) -> dict[str, float]:
    from pplvm.topics import completion_perplexity

    start = time.perf_counter()
    model = contender.fit(corpus, K, seed, amount)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    own = completion_perplexity(model, *halves)
    inference = time.perf_counter() - start
    found = {"s": seconds, "inference s": inference, "perplexity": own}
    theta = torch.full((1, K), 1 / K)
    mixes = torch.allclose(model.word_probs(theta), theta @ model.topics, rtol=1e-3)
    alike = Known(model.topics, _inference(model))
    return found | {"alike": completion_perplexity(alike, *halves) if mixes else math.nan}


def summary(each: list[dict[str, float]], judge: str) -> dict[str, float]:
    """Returns means over seeds, and the standard deviation over seeds of what judges."""
    found = {key: statistics.mean(x[key] for x in each) for key in each[0]}
    if len(each) > 1:
        found[f"sd of {judge}"] = statistics.stdev(x[judge] for x in each)
    return found


def _inference(model) -> Callable[[csr_array], torch.Tensor]:
    """Returns pplvm's inference under topics that are known: their posterior has no spread."""
    from pplvm.topics.mean_field import posterior

    topics = model.topics.float().clamp_min(1e-12)
    alpha = torch.full((len(topics),), 0.1)
    sure = 1e6 * topics / topics.sum(1, keepdim=True)
    return lambda counts: posterior(counts, sure, alpha)[0]


def chosen(options) -> Mapping:
    found = {
        name: x
        for name, x in CONTENDERS.items()
        if not options.contenders or any(name.startswith(c) for c in options.contenders)
    }
    if not found:
        raise SystemExit(f"--contenders should begin names of {', '.join(CONTENDERS)}.")
    return found


def unigram(train: csr_array, held_out: csr_array) -> float:
    """Returns the perplexity of the words' own frequencies, of 1/2 more each."""
    p = np.asarray(train.sum(0), float).ravel() + 0.5
    h = np.asarray(held_out.sum(0), float).ravel()
    return float(np.exp(-(h @ np.log(p / p.sum())) / h.sum()))


def folder() -> Path:
    found = Path(os.environ.get("PPLVM_DATA", ""), "newsgroups20")
    if not found.is_dir():
        raise SystemExit("PPLVM_DATA should name the folder of the data sets, with newsgroups20.")
    return found


def newsgroups(options) -> tuple[dict, dict]:
    from pplvm.datasets_corpora import newsgroups20

    train = newsgroups20("train").counts
    stored = np.load(folder() / "bow_etm_3072_test_halves.npz")
    arrays = stored["data"].astype(np.int32), stored["indices"].astype(np.int32), stored["indptr"]
    both = csr_array(arrays, shape=tuple(stored["shape"]))
    N = both.shape[0] // 2
    halves = both[:N], both[N:]
    whole = newsgroups20("test").counts
    assert abs(halves[0] + halves[1] - whole).sum() == 0, "halves are of other documents"
    rows, raw = judged(train, halves, 50, options)
    return {f"20 Newsgroups, 50 topics; unigram {unigram(train, halves[1]):.0f}": rows}, raw


def coherence(options) -> tuple[dict, dict]:
    from pplvm.datasets_corpora import newsgroups20
    from pplvm.topics import diversity, npmi

    train = newsgroups20("train", "prodlda").counts
    reference = newsgroups20("test", "prodlda").counts
    rows, raw = [], {}
    for name, contender in chosen(options).items():
        corpus, amount = contender.prepare(train), contender.amounts[0 if options.quick else -1]
        each = []
        for seed in range(options.rounds):
            topics = contender.fit(corpus, 50, seed, amount).topics
            each.append(
                {"NPMI": npmi(topics, reference).mean().item(), "diversity": diversity(topics)}
            )
        raw[name] = each
        rows.append({"contender": name, "passes": str(amount), **summary(each, "NPMI")})
        print(rows[-1], file=sys.stderr, flush=True)
    return {"20 Newsgroups, 1995 words, 50 topics": rows}, raw


def bounds(options) -> tuple[dict, dict]:
    from pplvm.datasets_corpora import newsgroups20
    from pplvm.topics import VariationalEM, bound_perplexity
    from pplvm.topics.documents import log_coefficients

    train, test = newsgroups20("train").counts, newsgroups20("test").counts[:1500]

    def perplexity(model) -> float:
        if isinstance(model, VariationalEM):
            found = model.bound(test)
            total = (found - log_coefficients(test).to(found)).sum().item()
            return math.exp(-total / float(test.sum()))
        return bound_perplexity(model.fit, test, num_particles=2)

    rows, raw = [], {}
    for name, contender in chosen(options).items():
        if name.startswith("pplvm"):
            amount = contender.amounts[: 1 if options.quick else 2][-1]
            models = (contender.fit(train, 50, seed, amount) for seed in range(options.rounds))
            raw[name] = [{"perplexity": perplexity(model)} for model in models]
            rows.append(
                {"contender": name, "passes": str(amount), **summary(raw[name], "perplexity")}
            )
            print(rows[-1], file=sys.stderr, flush=True)
    return {"20 Newsgroups, 50 topics, bounds of whole documents": rows}, raw


def reuters(options) -> tuple[dict, dict]:
    from pplvm.datasets_corpora import reuters as load
    from pplvm.text import document_halves

    counts = load().counts
    held_out = np.arange(counts.shape[0]) % 5 == 0
    train, halves = counts[~held_out], document_halves(counts[held_out])
    rows, raw = judged(train, halves, 20, options)
    return {f"Reuters-395, 20 topics; unigram {unigram(train, halves[1]):.0f}": rows}, raw


# ---- time ----


def speed(options) -> tuple[dict, dict]:
    """Takes what two lengths differ by, so that what is done once does not count."""
    from pplvm.datasets_corpora import newsgroups20

    train, rows, raw = newsgroups20("train").counts, [], {}
    for name, contender in chosen(options).items():
        corpus, each = contender.prepare(train), []
        few, more = (2, 4) if options.quick else (5, 15)
        for seed in range(options.rounds):
            times = []
            for amount in (few, more):
                start = time.perf_counter()
                contender.fit(corpus, 50, seed, amount)
                times.append(time.perf_counter() - start)
            each.append((times[1] - times[0]) / (more - few))
        raw[name] = each
        rows.append({"contender": name, "s a pass": statistics.median(each)})
        print(rows[-1], file=sys.stderr, flush=True)
    return {"20 Newsgroups, 50 topics: time of a pass": rows}, raw


def scale(options) -> tuple[dict, dict]:
    largest = 20_000 if options.quick else 1_000_000
    rows, raw = [], {}
    for N in (largest // 8, largest // 4, largest // 2, largest):
        with tempfile.TemporaryDirectory() as where:
            path = str(Path(where, "corpus.npz"))
            for setup in (writes, reads):
                worker = Worker(setup, path)
                answer = worker(N)
                worker.close()
        raw[str(N)] = answer
        rows.append({"documents": f"{N:,}", **answer})
        print(rows[-1], file=sys.stderr, flush=True)
    return {f"Streamed documents of {LENGTH} of {V:,} words, 50 topics, one pass": rows}, raw


def writes(path: str) -> Callable[[int], None]:
    """Draws documents to a file, which are of the story of latent Dirichlet allocation."""
    from pplvm.text import CorpusWriter

    random = np.random.default_rng(0)
    ends = random.dirichlet(np.full(V, 0.05), 50).cumsum(1)  # (K, V)

    def write(N: int) -> None:
        with CorpusWriter(path, [f"w{w}" for w in range(V)]) as writer:
            for start in range(0, N, 10_000):
                B = min(10_000, N - start)
                tokens = random.multinomial(LENGTH, random.dirichlet(np.full(50, 0.1), B))  # (B, K)
                rows, words = [], []
                for k in range(50):
                    rows.append(np.repeat(np.arange(B), tokens[:, k]))
                    drawn = np.searchsorted(ends[k], random.random(len(rows[-1])))
                    words.append(drawn.clip(max=V - 1))
                at = np.concatenate(rows), np.concatenate(words)
                writer.append(csr_array((np.ones(len(at[0]), np.int32), at), shape=(B, V)))

    return write


def reads(path: str) -> Callable[[int], dict[str, float]]:
    """Takes one pass over the file, with batches of 4096."""
    from pplvm.text import read_corpus
    from pplvm.topics import variational_em

    def read(N: int) -> dict[str, float]:
        counts = read_corpus(path).counts
        assert counts.shape[0] == N
        with Anonymous() as memory:
            start = time.perf_counter()
            variational_em(counts, 50, batch_size=4096, num_epochs=1, progress=False)
            seconds = time.perf_counter() - start
        words = float(counts.sum(dtype=np.int64))
        return {
            "file MB": Path(path).stat().st_size / 2**20,
            "s": seconds,
            "µs a token": 1e6 * seconds / words,
            "MB at start": memory.first,
            "peak MB": memory.peak,
        }

    return read


class Anonymous:
    """The largest memory of this process, in MB, but for the pages of files that it maps.

    Those are counted as resident as long as nobody else wants their place.
    """

    def __enter__(self) -> "Anonymous":
        self.first = self.peak = self._now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.peak = max(self.peak, self._now())

    def _now(self) -> float:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("this system does not say what memory a process has of its own.")


def main() -> None:
    parser = common.parser(__doc__, rounds=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--contenders", nargs="+", help="beginnings of names; by default all")
    options = parser.parse_args()
    about = common.machine(options.cores)
    about |= {name: version(name) for name in ("scikit-learn", "gensim", "tomotopy", "scipy")}
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    warnings.filterwarnings("ignore", module="tomotopy")  # two workers are not reproducible
    logging.getLogger("gensim").setLevel(logging.ERROR)
    tables, raw = {}, {}
    parts = (newsgroups, coherence, bounds, reuters, speed, scale)
    for part in (part for part in parts if part.__name__ in options.parts):
        made, raw[part.__name__] = part(options)
        tables |= made
    common.keep("topics", about, vars(options), tables, raw)


if __name__ == "__main__":
    main()
