"""Graphs of tensor operations made simpler: for tracing, for compilers, and for their caches."""

from collections.abc import Callable

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten

# Up to this dim, solving a triangle or a running product is spelled out; up to so many numbers
# to multiply, a product of matrices.
_SMALL, _FEW_PRODUCTS = 10, 10_000


class Steady(TorchFunctionMode):
    """Says in other words what would look at the values of tensors for no need."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.one_hot:
            return _one_hot(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes == -1:
        num_classes = int(tensor.max()) + 1  # which ends the trace, and should
    return (tensor[..., None] == torch.arange(num_classes, device=tensor.device)).long()


def _running(combine: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def running(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
        if x.ndim == 0 or x.shape[dim] > _SMALL or dtype is not None:
            return NotImplemented
        parts = list(x.unbind(dim))
        for i in range(1, len(parts)):
            parts[i] = combine(parts[i - 1], parts[i])
        return torch.stack(parts, dim)

    return running


def _solve_triangular(
    A: Tensor, B: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Tensor:
    """Forward or backward substitution: A is (…, D, D), B is (…, D, K)."""
    D = A.shape[-1]
    if D > _SMALL or not left or unitriangular:
        return NotImplemented
    order = list(range(D))[::-1] if upper else list(range(D))
    X: dict[int, Tensor] = {}
    for i in order:
        known = sum(A[..., i, j, None] * X[j] for j in X)
        X[i] = (B[..., i, :] - known) / A[..., i, i, None]  # (…, K)
    return torch.stack([X[i] for i in range(D)], -2)


def _mv(A: Tensor, x: Tensor) -> Tensor:
    return (A * x).sum(-1)


def _mm(A: Tensor, B: Tensor) -> Tensor:
    if A.shape[-2] * B.numel() > _FEW_PRODUCTS:
        return NotImplemented
    return (A[..., None] * B[..., None, :, :]).sum(-2)


SPELLED_OUT = {
    aten.mm.default: _mm,
    aten.bmm.default: _mm,
    aten.cumprod.default: _running(torch.mul),
    aten.cumsum.default: _running(torch.add),
    aten.linalg_solve_triangular.default: _solve_triangular,
    aten.mv.default: _mv,
    aten.dot.default: _mv,
}

_INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


def lift(module: fx.GraphModule) -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
    """Computes what depends on constants alone, and makes inputs of these constants.

    Two data sets of one shape then give the same graph, which is compiled once. What a graph
    computes twice, as where programs run again at other draws, it computes once.
    """
    graph = module.graph
    graph.eliminate_dead_code()
    _share(graph)
    known: dict[fx.Node, Tensor] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            known[node] = getattr(module, node.target)
        elif _foldable(node, known):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda a: known[a])
            value = node.target(*args, **kwargs)
            if isinstance(value, Tensor) and value.numel() <= _room(node, value, known):
                known[node] = value
        elif node.target in _INDEXING:
            _index_by_numbers(node, known)
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    constants = []
    for node, value in known.items():
        if any(user not in known for user in node.users):
            with graph.inserting_after(last):
                last = graph.placeholder(f"constant_{len(constants)}")
            constants.append(value.detach().clone())
            node.replace_all_uses_with(last, delete_user_cb=lambda user: user not in known)
    for node in reversed(known):
        graph.erase_node(node)
    graph.eliminate_dead_code()
    graph.set_codegen(fx.graph.CodeGen())  # plain arguments instead of make_fx's nested ones
    return fx.GraphModule(torch.nn.Module(), graph), tuple(constants)


def _share(graph: fx.Graph) -> None:
    """Replaces operations by earlier ones of the same arguments, where nothing changes in place."""
    if any(_mutates(node) for node in graph.nodes):
        return
    first: dict[tuple, fx.Node] = {}
    for node in graph.nodes:
        if node.op != "call_function" or _is_random(node) or "empty" in str(node.target):
            continue
        known = first.setdefault((node.target, str(node.args), str(node.kwargs)), node)
        if known is not node:
            node.replace_all_uses_with(known)
    graph.eliminate_dead_code()


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _foldable(node: fx.Node, known: dict[fx.Node, Tensor]) -> bool:
    return (
        node.op == "call_function"
        and all(a in known for a in node.all_input_nodes)
        and not _mutates(node)
        and not _is_random(node)
    )


def _room(node: fx.Node, value: Tensor, known: dict[fx.Node, Tensor]) -> int:
    """How large a constant may be: one that is blown up would be read from memory instead.

    Of what is made from nothing, only positions and masks are worth knowing.
    """
    if not value.is_floating_point():
        return _FEW_PRODUCTS
    return max((known[a].numel() for a in node.all_input_nodes), default=0)


def _index_by_numbers(node: fx.Node, known: dict[fx.Node, Tensor]) -> None:
    """Exchanges a known mask for the positions of what it keeps: compilers like shapes fixed."""
    tensor, indices, *rest = node.args
    if not any(i in known and known[i].dtype == torch.bool for i in indices):
        return
    numbers = []
    for i in indices:
        if i in known and known[i].dtype == torch.bool:
            for column in known[i].nonzero().unbind(1):
                with node.graph.inserting_before(node):
                    placed = node.graph.create_node("get_attr", "mask")
                known[placed] = column
                numbers.append(placed)
        else:
            numbers.append(i)
    node.args = (tensor, numbers, *rest)


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _is_fresh(node: fx.Node) -> bool:
    """Whether a tensor, or what it is a view of, was made by the function itself."""
    while node.op == "call_function" and isinstance(node.args[0] if node.args else None, fx.Node):
        schema = getattr(node.target, "_schema", None)  # none has getitem, of what unbind returns
        if schema is not None and not any(r.alias_info for r in schema.returns):
            return True
        node = node.args[0]
    return node.op == "call_function"


def mutates_inputs(graph: fx.Graph) -> bool:
    """Whether an operation changes a tensor in place that the graph did not make itself."""
    return any(_mutates(node) and not _is_fresh(node.args[0]) for node in graph.nodes)
