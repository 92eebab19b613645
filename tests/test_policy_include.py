"""A policy of several files: what it means, every error in its own file, and what a team's file cannot do."""

from collections.abc import Callable
from pathlib import Path

import pytest

from egress_policy.destination import parse_host
from egress_policy.feed_files import FeedFiles, signature
from egress_policy.policy_file import load, load_policy
from egress_policy.policy_include import Sources
from egress_policy.policy_source import PolicyFileError

MAIN = """\
version: 1
include: [teams/*.yaml]
agents:
  ci: {user: 2000, scopes: [sandbox-ci]}
scopes:
  sandbox-ci: {owner: ci@example.com}
trust:
  known-good:
    - {domain: api.example}
  known-bad:
    - {domain: bad.example}
intents:
  default:
    vetted: {methods: [GET]}
"""
ALICE = """\
# Alice's team.
agents:
  alice: {user: 2001, scopes: [sandbox-alice, sandbox-ci]}
scopes:
  sandbox-alice: {owner: alice@example.com}
trust:
  known-good:
    - {domain: alice.example}
  vetted:
    - {domain: docs.example}
"""
BOB = """\
version: 1
agents:
  bob: {user: 2002, scopes: [sandbox-bob]}
scopes:
  sandbox-bob: {owner: bob@example.com}
trust:
  vetted:
    - {domain: "*.docs.example"}
  known-bad:
    - {feed: feeds/bob.txt}
"""

type Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a policy of three files, with changes to some of them."""

    def write_files(main: str = MAIN, alice: str = ALICE, bob: str = BOB) -> Path:
        (tmp_path / "teams/feeds").mkdir(parents=True, exist_ok=True)
        (tmp_path / "teams/feeds/bob.txt").write_text("evil.example\n")
        (tmp_path / "teams/bob.yaml").write_text(bob)
        (tmp_path / "teams/alice.yaml").write_text(alice)
        (tmp_path / "policy.yaml").write_text(main)
        return tmp_path / "policy.yaml"

    return write_files


def errors(path: Path) -> list[str]:
    """Return the errors as a person reads them, without the folder."""
    with pytest.raises(PolicyFileError) as raised:
        load_policy(path)
    return [str(error).replace(f"{path.parent}/", "") for error in raised.value.errors]


def test_the_files_make_one_policy(write: Write) -> None:
    loaded = load(write())
    policy = loaded.policy
    assert list(policy.agents) == ["ci", "alice", "bob"]
    assert list(policy.scopes) == ["sandbox-ci", "sandbox-alice", "sandbox-bob"]
    assert {(str(entry.pattern), entry.level) for entry in policy.trust.domains} == {
        ("api.example", "known-good"),
        ("alice.example", "known-good"),
        ("docs.example", "vetted"),
        ("*.docs.example", "vetted"),
    }
    assert [file.name for file in loaded.files] == ["policy.yaml", "alice.yaml", "bob.yaml"]
    assert {name: file.name for name, file in loaded.scope_files.items()} == {
        "sandbox-ci": "policy.yaml",
        "sandbox-alice": "alice.yaml",
        "sandbox-bob": "bob.yaml",
    }


def test_a_feed_is_relative_to_the_file_that_names_it(write: Write) -> None:
    bad = load_policy(write()).trust.known_bad
    assert bad.why_name("evil.example") == "evil.example in teams/feeds/bob.txt"


def test_known_bad_wins_whichever_file_says_it(write: Write) -> None:
    policy = load_policy(write(alice=ALICE + "  known-bad:\n    - {domain: api.example}\n"))
    host = parse_host("api.example")
    assert isinstance(host, str)
    assert policy.trust.known_bad.why_name(host) == "api.example"


@pytest.mark.parametrize(
    ("team", "expected"),
    [
        pytest.param(
            ALICE.replace("user: 2001", "user: 2000"),
            "teams/alice.yaml:3:17: agents.alice.user: is also agent ci's",
            id="a uid twice",
        ),
        pytest.param(
            ALICE.replace("  alice:", "  ci:"),
            "teams/alice.yaml:3:7: agents.ci: is there already, on line 4 of policy.yaml",
            id="an agent twice",
        ),
        pytest.param(
            ALICE.replace("sandbox-alice: {", "sandbox-ci: {"),
            "teams/alice.yaml:5:15: scopes.sandbox-ci: is there already, on line 6 of policy.yaml",
            id="a scope twice",
        ),
        pytest.param(
            ALICE.replace("alice.example}", "api.example}"),
            "teams/alice.yaml:8:7: trust.known-good[0]: api.example port 80 is already known-good, "
            "on line 9 of policy.yaml",
            id="an entry twice",
        ),
        pytest.param(
            ALICE.replace(
                "    - {domain: docs.example}", "    - {domain: docs.example}\n    - {cidr: 10.0.0.1/8}"
            ),
            "teams/alice.yaml:11:14: trust.vetted[1].cidr: '10.0.0.1/8' is not an address",
            id="a wrong value",
        ),
        pytest.param(
            ALICE.replace("    - {domain: docs.example}", "    - {domain: docs.example}\n    - {}"),
            "teams/alice.yaml:11:7: trust.vetted[1]: an entry has one of domain, cidr and feed",
            id="what only the whole can tell",
        ),
        pytest.param(
            ALICE.replace("[sandbox-alice,", "[sandbox-bob,"),
            "teams/alice.yaml:3:32: agents.alice.scopes[0]: sandbox-bob is bob.yaml's",
            id="another team's scope",
        ),
        pytest.param("version: 2\n", "teams/alice.yaml:1:10: version: 2 is not 1", id="another version"),
        pytest.param("", "teams/alice.yaml:1:1: the file is empty", id="empty"),
        pytest.param("- [\n", "teams/alice.yaml:2:1: not YAML", id="not YAML"),
        pytest.param(
            "trust: 1\nx: 1\n", "teams/alice.yaml:2:1: x: unknown key; known are version", id="unknown key"
        ),
        *(
            pytest.param(
                f"{key}: x\n",
                f"teams/alice.yaml:1:1: {key}: belongs into the policy file",
                id=key,
            )
            for key in ("proxy", "resolver", "intents", "operators", "include")
        ),
    ],
)
def test_every_error_is_in_its_own_file(write: Write, team: str, expected: str) -> None:
    found = errors(write(alice=team))
    assert any(error.startswith(expected) for error in found), found


def test_errors_of_several_files_are_said_at_once(write: Write) -> None:
    found = errors(write(alice=ALICE.replace("2001", "root"), bob=BOB.replace("2002", "root")))
    assert {error.split(":")[0] for error in found} == {"teams/alice.yaml", "teams/bob.yaml"}


def test_a_bad_line_of_a_teams_feed_is_named_in_the_feed(write: Write) -> None:
    path = write()
    (path.parent / "teams/feeds/bob.txt").write_text("not a name!\n")
    assert errors(path)[0].startswith("teams/feeds/bob.txt:1:1: ")


@pytest.mark.parametrize(
    "pattern",
    ["/etc/passwd", "../x.yaml", "teams/../../x.yaml", "*/x.yaml", "**/x.yaml", "teams/", "./x.yaml", ""],
)
def test_only_files_below_the_policy_can_be_named(write: Write, pattern: str) -> None:
    (error,) = errors(write(MAIN.replace("teams/*.yaml", f"'{pattern}'")))
    assert error.startswith("policy.yaml:2:11: include[0]: ")
    assert "is not files below the policy's folder, such as teams/*.yaml" in error


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("groups/*.yaml", "there is no file groups/*.yaml in"),
        ("teams/eve.yaml", "there is no file teams/eve.yaml in"),
        ("teams/feeds", "teams/feeds is not a file"),
        ("*.yaml", "policy.yaml is the policy file itself"),
    ],
)
def test_what_is_named_must_be_there(write: Write, pattern: str, said: str) -> None:
    """Agents whose file is missing would be held to nothing."""
    (error,) = errors(write(MAIN.replace("teams/*.yaml", f"'{pattern}'")))
    assert error.startswith("policy.yaml:2:11: include[0]: ")
    assert said in error


def test_no_link_leads_out_of_the_policys_folder(
    write: Write, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path, elsewhere = write(), tmp_path_factory.mktemp("elsewhere") / "eve.yaml"
    elsewhere.write_text(BOB)
    (path.parent / "teams/bob.yaml").unlink()
    (path.parent / "teams/bob.yaml").symlink_to(elsewhere)
    assert "teams/bob.yaml is a link that leads out of the policy's folder" in errors(path)[0]
    (path.parent / "teams/bob.yaml").unlink()
    (path.parent / "teams/bob.yaml").symlink_to("bob.yaml")
    assert "teams/bob.yaml is not a file" in errors(path)[0]


def test_hidden_files_do_not_count_and_none_counts_twice(write: Write) -> None:
    path = write(MAIN.replace("teams/*.yaml", "teams/bob.yaml, teams/*.yaml"))
    (path.parent / "teams/.#alice.yaml").symlink_to("nowhere")
    assert [file.name for file in load(path).files] == ["policy.yaml", "bob.yaml", "alice.yaml"]


def test_each_file_and_a_patterns_folder_are_watched(write: Write) -> None:
    """A file that is added is seen as much as one that changed."""
    path, feeds = write(), FeedFiles()
    load(path, feeds=feeds)
    folder = path.parent
    assert {*feeds.seen} == {
        path,
        folder / "teams",
        folder / "teams/alice.yaml",
        folder / "teams/bob.yaml",
        folder / "teams/feeds/bob.txt",
    }
    before = dict(feeds.seen)
    (folder / "teams/eve.yaml").write_text("agents: {}\n")
    assert [file for file in before if before[file] != signature(file)] == [folder / "teams"]


def test_a_link_that_is_turned_meanwhile_gives_no_half_of_each(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy file of one release and the team's of another would be a policy that nobody reviewed."""
    write()
    new = tmp_path / "new"
    (new / "teams").mkdir(parents=True)
    (new / "policy.yaml").write_text(MAIN.replace("api.example", "new.example"))
    (new / "teams/alice.yaml").write_text(ALICE)
    link = tmp_path / "current"
    link.symlink_to(".")
    read = Sources.decode

    def turn(sources: Sources) -> object:
        document = read(sources)
        if link.readlink() == Path():
            other = tmp_path / "turned"
            other.symlink_to("new")
            other.rename(link)
        return document

    monkeypatch.setattr(Sources, "decode", turn)
    policy = load_policy(link / "policy.yaml")
    assert list(policy.agents) == ["ci", "alice"]
    assert policy.trust.entries_for_name("new.example")


def test_a_file_can_be_tried_before_it_is_written(write: Write) -> None:
    path = write()
    alice = path.parent / "teams/alice.yaml"
    tried = load(path, instead={alice: alice.read_bytes() + b"    - {domain: new.example}\n"})
    assert tried.policy.trust.entries_for_name("new.example")
    assert not load_policy(path).trust.entries_for_name("new.example")


def test_links_in_a_circle_are_an_error_like_another(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").symlink_to("policy.yaml")
    assert "cannot be read: Too many levels of symbolic links" in errors(tmp_path / "policy.yaml")[0]
