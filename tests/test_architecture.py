"""The house holds: arrows run downwards only, and each library has its one room."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The rooms that decide: values in, values out, no I/O and no clock of their own.
PURE = {
    "addresses",
    "decision",
    "denial",
    "destination",
    "export.cilium",
    "export.compiled",
    "export.istio",
    "export.losses",
    "export.networkpolicy",
    "export.openings",
    "feed",
    "grant",
    "http_request",
    "policy",
    "policy_containers",
    "policy_tests",
    "reachability",
    "rights",
    "scope",
}
# What they may import besides each other. A library is added here once it is known to do no I/O.
HARMLESS = {
    "bisect",
    "collections",
    "dataclasses",
    "datetime",
    "enum",
    "functools",
    "hashlib",
    "http",
    "http_sf",
    "idna",
    "ipaddress",
    "itertools",
    "math",
    "re",
    "typing",
}
# Which rooms may import a library that talks to something.
ROOMS = {
    "mitmproxy": set[str](),
    "cryptography": {"trial_server", "trust_files"},
    "prometheus_client": {"metrics"},
    "dns": {"resolver"},
    "pyroute2": {"element_messages", "firewall", "caller", "socket_owner", "nflog"},
    "click": {"cli"},
    "rich": {"cli"},
    "yaml": {"export", "policy_document", "policy_edit", "policy_file", "policy_source"},
}
NETLINK = {"caller", "firewall", "kernel_changes", "nflog", "socket_owner"}


def modules() -> dict[str, Path]:
    """Every module of ours, by the name that it is imported by."""
    package = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((ROOT / "egress_policy").rglob("*.py"))
    }
    return package | {path.stem: path for path in sorted((ROOT / "addons").glob("*.py"))}


MODULES = modules()
PACKAGE = sorted(name for name in MODULES if name.startswith("egress_policy"))


def room(module: str) -> str:
    """`egress_policy.cli.check` is of the room `cli`; what is not of the package is of none."""
    package, name, *_ = [*module.split("."), ""]
    return name if package == "egress_policy" else ""


def imports(module: str) -> Iterator[str]:
    """What a module imports, wherever in its code: full names, and for `from a import b` both a and a.b."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative name"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_pure_room_exists() -> None:
    """A room that was renamed would otherwise go unwatched."""
    assert {f"egress_policy.{name}" for name in PURE} <= set(MODULES)


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_rooms_import_nothing_that_does_io(name: str) -> None:
    """Decisions are values: whatever they rest on comes in as an argument."""
    strangers = {
        imported
        for imported in imports(f"egress_policy.{name}")
        if imported.split(".")[0] not in HARMLESS
        and not any(f"{imported}.".startswith(f"egress_policy.{pure}.") for pure in PURE)
        and imported != "egress_policy"
    }
    assert not strangers


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_rooms_read_neither_clock_nor_file(name: str) -> None:
    """`datetime` and builtins would let them in without an import."""
    tree = ast.parse(MODULES[f"egress_policy.{name}"].read_text())
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not attributes & {"now", "utcnow", "today"}
    assert not names & {"open", "print", "input", "__import__"}


@pytest.mark.parametrize("library", sorted(ROOMS))
def test_each_library_stays_in_its_room(library: str) -> None:
    """Who wants to know what talks to DNS, to netlink or to mitmproxy reads one file."""
    elsewhere = {
        module
        for module in PACKAGE
        if room(module) not in ROOMS[library]
        and any(imported.split(".")[0] == library for imported in imports(module))
    }
    assert not elsewhere


def test_netlink_sockets_stay_in_their_rooms() -> None:
    """The plain sockets as much as the library."""
    using = {module for module in MODULES if re.search(r"\bAF_NETLINK\b", MODULES[module].read_text())}
    assert {room(module) for module in using} <= NETLINK


@pytest.mark.parametrize("module", PACKAGE)
def test_the_package_knows_nothing_of_those_above_it(module: str) -> None:
    """Not of the addon, the tests or the demo; and only `python -m` knows the command line."""
    above = {name for name in MODULES if name not in PACKAGE} | {"addons", "tests", "deploy", "benchmarks"}
    assert not {imported for imported in imports(module) if imported.split(".")[0] in above}
    if room(module) not in {"cli", "__main__"}:
        assert not {imported for imported in imports(module) if room(imported) == "cli"}


def test_no_module_imports_itself_in_a_circle() -> None:
    """Any cycle is shown by name."""
    graph = {module: set(imports(module)) & set(MODULES) - {module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def requirements() -> list[str]:
    """The entries of constraints.txt, each with its continuation lines."""
    text = (ROOT / "constraints.txt").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def test_every_requirement_is_pinned_with_hashes() -> None:
    """What is installed tomorrow is what was tested today."""
    assert requirements()
    for line in requirements():
        assert re.match(r"[a-z0-9-]+==\S+ ", line), line
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", line), line


def test_constraints_name_no_index_and_no_machine() -> None:
    """Where packages come from is the installing machine's business."""
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"https?:|file:|--(extra-)?index-url|--find-links|--trusted-host", text)
    assert not re.search(r"(^|\s)/", text)


def test_every_dependency_is_pinned() -> None:
    """A dependency that was added without `make lock` would not be installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = project["project"]["dependencies"] + project["project"]["optional-dependencies"]["dev"]
    names = {
        re.split(r"[<>=! \[]", entry)[0].lower().replace(".", "-")
        for entry in declared + project["build-system"]["requires"]
    }
    assert names <= {line.split("==")[0] for line in requirements()}


@pytest.mark.parametrize(
    "command",
    [[str(Path(sys.executable).parent / "egress-policy")], [sys.executable, "-m", "egress_policy"]],
    ids=["installed", "python -m"],
)
def test_the_command_line_says_what_it_offers(command: list[str]) -> None:
    """The installed command and the module are one."""
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False, timeout=30)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("Usage: ")
    assert {"check", "apply", "explain", "grants", "doctor"} <= set(shown.stdout.split())


def test_the_package_carries_the_ruleset() -> None:
    """An installed `apply` finds the same file that a reader finds in nft/."""
    carried = ROOT / "egress_policy" / "egress.nft"
    assert carried.is_symlink()
    assert carried.resolve() == ROOT / "nft" / "egress.nft"
    assert carried.read_text().strip()
