"""The digest of a module's syntax tree: equal for sources with the same computation.

Excluded, because no result depends on them:

- comments, formatting, docstrings and other strings that form a statement;
- names of local variables, and the order of adjacent imports;
- annotations of functions and of local variables. Those of decorated functions count, because
  Triton and PyTorch read them, unless the decorator is known to ignore them;
- imports under `TYPE_CHECKING`, `__all__`, `__version__` and the table of lazy exports;
- messages of `assert`, of warnings and of errors that end a stage (`SILENT_ERRORS`). The text of
  other errors counts: the reason of a reject is a table cell;
  - fields and validators of parameter sections (classes that derive from `sf.fields.Section`): the
  key contains the accepted values. A `ClassVar` is not a field and counts.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Iterator, Sequence

__all__ = ["counted_nodes", "syntax_digest"]

SILENT_ERRORS = {"ConfigError", "EnvironmentFault", "OutputConflictError", "UnsupportedModelError"}
IGNORES_ANNOTATIONS = {
    "abstractmethod", "cache", "cached_property", "classmethod", "contextmanager",
    "inference_mode", "lru_cache", "no_grad", "overload", "override", "property", "setter",
    "staticmethod", "wraps",
}  # fmt: skip
VALIDATORS = {"field_validator", "model_validator", "AfterValidator", "BeforeValidator"}
READS_NAMES = {"dir", "eval", "exec", "globals", "locals", "vars"}
NO_FIELD = {"ctx", "kind", "type_comment", "type_ignores", "type_params"}
LITERAL = "="  # marks a name of a scope that is written unchanged

Function = ast.FunctionDef | ast.AsyncFunctionDef
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def syntax_digest(tree: ast.Module, sections: Collection[str] = ()) -> str:
    """A 16-character hash of a module's computation.

    Args:
        tree: of the module's source.
        sections: names of its classes that are parameter sections.
    """
    writer = _Writer(sections, _validating(tree))
    writer.statements(tree.body)
    return hashlib.blake2b("".join(writer.parts).encode(), digest_size=8).hexdigest()


def counted_nodes(tree: ast.Module, sections: Collection[str] = ()) -> Iterator[ast.AST]:
    """All nodes except those below `TYPE_CHECKING` and in validators and section fields."""
    validating = _validating(tree)
    waiting: list[tuple[ast.AST, bool]] = [(tree, False)]
    while waiting:
        node, in_section = waiting.pop()
        yield node
        if isinstance(node, ast.If) and _is_type_checking(node):
            waiting += [(child, in_section) for child in node.orelse]
            continue
        section = isinstance(node, ast.ClassDef) and node.name in sections
        for child in ast.iter_child_nodes(node):
            if not _is_uncounted(child, section, validating):
                waiting.append((child, section))


def _is_uncounted(node: ast.AST, in_section: bool, validating: Collection[str]) -> bool:
    """Whether a statement is a validator or declares a section's fields."""
    if isinstance(node, Function):
        names = {_last_name(decorator) for decorator in node.decorator_list}
        return node.name in validating or bool(names & VALIDATORS)
    if isinstance(node, ast.Assign):
        return in_section and [_last_name(target) for target in node.targets] == ["model_config"]
    if not (in_section and isinstance(node, ast.AnnAssign)):
        return False
    names = {part.id for part in ast.walk(node.annotation) if isinstance(part, ast.Name)}
    return not names & {"ClassVar", "PrivateAttr"}


def _validating(tree: ast.Module) -> set[str]:
    """Names of the functions passed to `AfterValidator` and `BeforeValidator`."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {
        word.id
        for call in calls
        if _last_name(call) in VALIDATORS
        for word in call.args
        if isinstance(word, ast.Name)
    }


def _is_type_checking(node: ast.If) -> bool:
    return _last_name(node.test) == "TYPE_CHECKING"


def _last_name(node: ast.AST | None) -> str:
    """`c` of `a.b.c(…)`; empty for another expression."""
    if isinstance(node, ast.Call):
        return _last_name(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


class _Writer:
    """Writes a tree as text; local names become numbers in order of appearance."""

    def __init__(self, sections: Collection[str], validating: Collection[str]) -> None:
        self.parts: list[str] = []
        self.sections, self.validating = sections, validating
        self.scopes: list[dict[str, str]] = []
        self.in_class = False

    def statements(self, body: Sequence[ast.stmt], in_section: bool = False) -> None:
        """Write a block: adjacent imports are sorted, uncounted statements omitted."""
        imports: list[tuple[str, ...]] = []
        for statement in body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                imports += _imported(statement)
                continue
            self._write_imports(imports)
            if isinstance(statement, ast.If) and _is_type_checking(statement):
                self.statements(statement.orelse, in_section)
            elif not (
                isinstance(statement, ast.Pass)
                or (isinstance(statement, ast.Expr) and _is_text(statement.value))
                or (isinstance(statement, ast.Assign) and _names_public(statement))
                or _is_uncounted(statement, in_section, self.validating)
                or self._is_bare_section(statement)
            ):
                self.node(statement)
        self._write_imports(imports)

    def _write_imports(self, imports: list[tuple[str, ...]]) -> None:
        self.parts += [repr(entry) for entry in sorted(set(imports))]
        imports.clear()

    def _is_bare_section(self, node: ast.stmt) -> bool:
        """Whether the class is a section that only declares fields, whose values are in the key."""
        if not (isinstance(node, ast.ClassDef) and node.name in self.sections):
            return False
        return all(
            isinstance(part, ast.Pass)
            or (isinstance(part, ast.Expr) and _is_text(part.value))
            or _is_uncounted(part, True, self.validating)
            for part in node.body
        )

    def node(self, node: ast.AST) -> None:
        """Write one node with its non-empty fields; Python versions differ in the empty ones."""
        special = getattr(self, f"_{type(node).__name__.lower()}", None)
        if special is not None:
            special(node)
            return
        self.parts.append(f"({type(node).__name__}")
        for name, value in ast.iter_fields(node):
            if value is None or value == [] or name in NO_FIELD:
                continue
            self.parts.append(f" {name}:")
            self.value(value)
        self.parts.append(")")

    def value(self, value: object) -> None:
        if isinstance(value, ast.AST):
            self.node(value)
        elif isinstance(value, list) and value and isinstance(value[0], ast.stmt):
            self.statements(value)
        elif isinstance(value, list):
            for entry in value:
                self.value(entry)
                self.parts.append(",")
        else:
            self.parts.append(repr(value))

    def _constant(self, node: ast.Constant) -> None:
        self.parts.append(f"({type(node.value).__name__} {node.value!r})")

    def _name(self, node: ast.Name) -> None:
        self.parts.append(f"({self._written(node.id)})")

    def _nonlocal(self, node: ast.Nonlocal) -> None:
        self.parts.append(f"(nonlocal {[self._written(name) for name in node.names]})")

    def _written(self, name: str) -> str:
        for depth, scope in reversed(list(enumerate(self.scopes))):
            if name in scope:
                if not scope[name]:
                    numbered = sum(value not in ("", LITERAL) for value in scope.values())
                    scope[name] = f"#{depth}.{numbered}"
                return name if scope[name] == LITERAL else scope[name]
        return name

    def _classdef(self, node: ast.ClassDef) -> None:
        self.parts.append(f"(class {node.name}")
        self.value([*node.decorator_list, *node.bases, *node.keywords])
        around, self.in_class = self.in_class, True
        self.scopes.append(dict.fromkeys(_class_names(node), LITERAL))
        self.statements(node.body, node.name in self.sections)
        self.scopes.pop()
        self.in_class = around
        self.parts.append(")")

    def _functiondef(self, node: Function) -> None:
        self.parts.append(f"({type(node).__name__} {node.name}")
        self.value(node.decorator_list)
        decorators = {_last_name(decorator) for decorator in node.decorator_list}
        self._arguments(node.args, annotated=not decorators <= IGNORES_ANNOTATIONS)
        around, self.in_class = self.in_class, False
        self.scopes.append(_scope(node))
        self.statements(node.body)
        self.scopes.pop()
        self.in_class = around
        self.parts.append(")")

    _asyncfunctiondef = _functiondef

    def _lambda(self, node: ast.Lambda) -> None:
        self.parts.append("(lambda")
        self._arguments(node.args)
        self.scopes.append(dict.fromkeys(_argument_names(node.args), LITERAL))
        self.node(node.body)
        self.scopes.pop()
        self.parts.append(")")

    def _arguments(self, arguments: ast.arguments, annotated: bool = False) -> None:
        for name, value in ast.iter_fields(arguments):
            self.parts.append(f" {name}:")
            for entry in value if isinstance(value, list) else [value]:
                if isinstance(entry, ast.arg):
                    self.parts.append(entry.arg)
                    if annotated and entry.annotation is not None:
                        self.node(entry.annotation)
                elif entry is not None:
                    self.node(entry)
                self.parts.append(",")

    def _comprehension_of(self, node: Comprehension) -> None:
        self.parts.append(f"({type(node).__name__}")
        self.node(node.generators[0].iter)  # belongs to the enclosing scope
        names = {
            word.id
            for generator in node.generators
            for word in ast.walk(generator.target)
            if isinstance(word, ast.Name)
        }
        self.scopes.append(dict.fromkeys(names, ""))
        for index, generator in enumerate(node.generators):
            self.value([generator.target, *([generator.iter] if index else []), *generator.ifs])
            self.parts.append(f"{generator.is_async};")
        inner = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        self.value(inner)
        self.scopes.pop()
        self.parts.append(")")

    _listcomp = _setcomp = _dictcomp = _generatorexp = _comprehension_of

    def _annassign(self, node: ast.AnnAssign) -> None:
        if self.in_class or not self.scopes:
            self.parts.append("(annotated")
            self.value([part for part in (node.target, node.annotation, node.value) if part])
            self.parts.append(")")
        elif node.value is not None:  # a function does not read its annotations
            self.node(ast.Assign(targets=[node.target], value=node.value))

    def _assert(self, node: ast.Assert) -> None:
        self.parts.append("(assert")
        self.node(node.test)
        self.parts.append(")")

    def _raise(self, node: ast.Raise) -> None:
        self.parts.append("(raise")
        if isinstance(node.exc, ast.Call) and _last_name(node.exc) in SILENT_ERRORS:
            self._without_texts(node.exc)
        else:
            self.value([part for part in (node.exc, node.cause) if part])
        self.parts.append(")")

    def _call(self, node: ast.Call) -> None:
        if _last_name(node) == "warn":
            self._without_texts(node)
            return
        self.parts.append("(call")
        self.value([node.func, *node.args, *node.keywords])
        self.parts.append(")")

    def _without_texts(self, node: ast.Call) -> None:
        self.parts.append("(message")
        self.node(node.func)
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        self.value([value for value in values if not _is_text(value)])
        self.parts.append(")")


def _imported(node: ast.Import | ast.ImportFrom) -> list[tuple[str, ...]]:
    if isinstance(node, ast.Import):
        return [("import", alias.name, alias.asname or "") for alias in node.names]
    if node.module == "__future__":
        return []
    origin = "." * node.level + (node.module or "")
    return [("from", origin, alias.name, alias.asname or "") for alias in node.names]


def _names_public(node: ast.Assign) -> bool:
    """Whether it assigns `__all__`, the version, or the lazy exports, which are followed in use."""
    names = [_last_name(target) for target in node.targets]
    return names in (["__all__"], ["__version__"], ["EXPORTS"])


def _argument_names(arguments: ast.arguments) -> list[str]:
    return [node.arg for node in ast.walk(arguments) if isinstance(node, ast.arg)]


def _class_names(node: ast.ClassDef) -> list[str]:
    """Names that a class may define, including names that its methods assign."""
    return [
        word.id
        for word in ast.walk(node)
        if isinstance(word, ast.Name) and not isinstance(word.ctx, ast.Load)
    ]


def _scope(function: Function) -> dict[str, str]:
    """{name: "" for a local variable, `LITERAL` for a name that is written unchanged}.

    Local variables are the names that the function assigns. Its parameters (callers use their
    names), imports, nested functions, caught errors and matched patterns keep their names. A
    function that reads its own names as text keeps all of them.
    """
    scope = dict.fromkeys(_argument_names(function.args), LITERAL)
    assigned: set[str] = set()
    outer: set[str] = set()
    waiting: list[ast.AST] = [*function.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            assigned.add(node.id)
        elif isinstance(node, ast.Nonlocal):
            outer.update(node.names)
        elif isinstance(node, ast.Global):
            scope |= dict.fromkeys(node.names, LITERAL)
        elif isinstance(node, Function | ast.ClassDef):
            scope[node.name] = LITERAL
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.asname or alias.name.split(".")[0] for alias in node.names]
            scope |= dict.fromkeys(names, LITERAL)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            scope[node.name] = LITERAL
        elif isinstance(node, ast.MatchMapping) and node.rest:
            scope[node.rest] = LITERAL
        if isinstance(node, Comprehension):
            waiting += [part for part in ast.walk(node) if isinstance(part, ast.NamedExpr)]
            waiting += [generator.iter for generator in node.generators]
        elif not isinstance(node, Function | ast.Lambda | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)
    names_read = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    default = LITERAL if names_read & READS_NAMES else ""
    return {**dict.fromkeys(assigned - outer, default), **scope}
