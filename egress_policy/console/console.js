// The console's page. Whatever comes from the proxy is put in as text, never as markup: agents choose host names and
// reasons. The session is kept by this tab and sent in a header, since a cookie would go to every port of this host.

const POLL = 2000;
const REFUSALS_SHOWN = 10;
const STORE = "egress-policy-session";
const SVG = "http://www.w3.org/2000/svg";
const find = (id) => document.getElementById(id);

let session = sessionStorage.getItem(STORE);
let allRefusals = false;
let answeredAt = null;

// Text and elements

/** Shows characters that have no shape of their own, or that turn others around, by their numbers. */
function visible(value) {
  return String(value ?? "").replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (one) => `\\u{${one.codePointAt(0).toString(16)}}`);
}

function write(node, value) {
  const text = visible(value);
  if (node.textContent !== text) node.textContent = text;
}

function element(name, className = "", ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children.map((child) => (child instanceof Node ? child : visible(child))));
  return node;
}

function drawn(name, attributes, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function button(label, spoken, className, act) {
  const node = element("button", className, label);
  node.type = "button";
  node.setAttribute("aria-label", visible(spoken));
  // Not `disabled`, which would take the focus away from it.
  let acting = false;
  node.addEventListener("click", async () => {
    if (acting) return;
    acting = true;
    await attempt(act);
    acting = false;
  });
  return node;
}

/** Makes a list's entries those of `items`, keeping what stays: focus and pointer are not disturbed. */
function reconcile(list, items, keyOf, make) {
  const known = new Map([...list.children].map((child) => [child.dataset.key, child]));
  const focused = [...list.children].findIndex((child) => child.contains(document.activeElement));
  let place = list.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    const entry = known.get(key) ?? make(item);
    known.delete(key);
    entry.dataset.key = key;
    entry.update?.(item);
    if (entry === place) place = place.nextElementSibling;
    else list.insertBefore(entry, place);
  }
  for (const gone of known.values()) gone.remove();
  if (focused >= 0 && !list.contains(document.activeElement)) {
    // What had the focus is gone: whoever works by keyboard goes on beside it.
    const next = list.children[Math.min(focused, list.children.length - 1)];
    (next?.querySelector("button") ?? list.closest("section")).focus();
  }
}

const socket = (host, port) => (host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`);
const clock = (moment) => new Date(moment).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const many = (count, one) => `${count} ${one}${count === 1 ? "" : "s"}`;

function destination(text) {
  const [, host, port] = /^(.*?)(:\d+)?$/su.exec(text);
  return element("span", "host", host, element("span", "port", port ?? ""));
}

function duration(seconds) {
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours} h ${two(minutes)} min` : `${minutes}:${two(Math.floor(seconds % 60))}`;
}

function ago(moment) {
  const minutes = Math.floor((Date.now() - new Date(moment)) / 60000);
  if (minutes < 1) return "just now";
  return minutes < 60 ? `${minutes} min ago` : `${Math.floor(minutes / 60)} h ago`;
}

// The proxy

class Refused extends Error {}

async function ask(method, path, body, token = session) {
  const response = await fetch(path, {
    method,
    headers: { Authorization: `Bearer ${token}` },
    body: body && JSON.stringify(body),
    cache: "no-store",
    credentials: "omit",
    redirect: "error",
    signal: AbortSignal.timeout(15000),
  });
  if (response.ok) return response.status === 204 ? null : response.json();
  const problem = await response.json().catch(() => ({}));
  if (response.status === 401) leave(problem.detail);
  throw new Refused(problem.detail ?? problem.title ?? `refused (${response.status})`);
}

async function attempt(act) {
  try {
    const said = await act();
    write(find("trouble"), "");
    if (said) say(said);
  } catch (error) {
    write(find("trouble"), error instanceof Refused ? error.message : "The proxy does not answer: nothing was changed.");
  }
  await refresh();
}

let saying;
function say(text) {
  write(find("said"), text);
  clearTimeout(saying);
  saying = setTimeout(() => write(find("said"), ""), 8000);
}

// Waiting

const FOR = [["once", "once"], ["15m", "15 min"], ["1h", "1 hour"], ["24h", "24 hours"]];

function waitingCard(one) {
  const where = socket(one.host, one.port);
  const decide = (decision, period, label) => async () => {
    await ask("POST", `/v1/approvals/${one.id}`, { decision, for: period });
    return `${decision === "approve" ? "Approved" : "Declined"} ${where} for ${one.scope}, ${label}.`;
  };
  const asked = element("p", "meta");
  const approve = FOR.map(([period, label]) =>
    button(label, `Approve ${where} for ${one.scope}, ${label}`, period === "1h" ? "primary" : "", decide("approve", period, label)),
  );
  const decline = button("Decline", `Decline ${where} for ${one.scope}, for 1 hour`, "danger decline", decide("decline", "1h", "1 hour"));
  const card = element(
    "li", "",
    element("p", "", destination(where)),
    element("p", "who", `${one.scope} · ${one.agent} · ${one.intent ?? "default"}${one.claimed_agent ? ` · says it is ${one.claimed_agent}` : ""}`),
    element("q", "said", one.reason ?? ""),
    asked,
    element("div", "buttons", element("span", "", "Approve"), ...approve, decline),
  );
  if (!one.reason) card.querySelector("q").remove();
  card.update = (now) => write(asked, `${now.method} · asked ${ago(now.asked)}${now.count > 1 ? ` · ${now.count} times` : ""}`);
  return card;
}

function showApprovals({ pending, decided }) {
  reconcile(find("waiting-list"), pending, (one) => one.id, waitingCard);
  write(find("waiting-count"), pending.length);
  document.querySelector('nav a[href="#waiting"]').classList.toggle("due", pending.length > 0);
  document.title = pending.length ? `(${pending.length}) egress-policy` : "egress-policy";
  find("decided").hidden = !decided.length;
  write(find("decided").querySelector("summary"), `${many(decided.length, "decision")} in force`);
  reconcile(find("decided-list"), decided, (one) => `${one.id} ${one.decision}`, (one) =>
    element("li", "who", `${one.decision}${one.once ? " once" : ""} by ${one.by}: ${socket(one.host, one.port)} for ${one.scope}`),
  );
}

// Grants

function grantRow(one) {
  const where = socket(one.host, one.port);
  const text = element("span");
  const bar = drawn("rect", { height: "4", width: "0" });
  const left = element("span", "left", text, drawn("svg", { viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" }, bar));
  const addresses = element("span", "addresses");
  const row = element(
    "li", "",
    element("span", "", destination(where), addresses),
    element("span", "who", element("b", "", one.scope), `${one.agent} · ${one.intent}`),
    left,
    button("Revoke", `Revoke ${where} of ${one.scope}`, "danger", async () => {
      await ask("DELETE", `/v1/grants/${one.id}`);
      return `Revoked ${where} of ${one.scope}: what ran under it was cut.`;
    }),
  );
  let end;
  const lasts = (new Date(one.expires) - new Date(one.issued)) / 1000;
  row.update = (now) => {
    write(addresses, now.addresses.join("  "));
    const ends = performance.now() + now.remaining * 1000;
    left.title = `until ${clock(now.expires)}`;
    // Whole seconds come from the proxy; the count does not jump for a fraction of one.
    if (end === undefined || Math.abs(ends - end) > 1500) end = ends;
    row.tick();
  };
  row.tick = () => {
    const seconds = Math.max(0, (end - performance.now()) / 1000);
    write(text, `${duration(seconds)} left`);
    left.classList.toggle("soon", seconds < 300);
    bar.setAttribute("width", String(Math.min(100, (100 * seconds) / lasts)));
  };
  return row;
}

function showGrants(grants) {
  reconcile(find("grants-list"), grants, (one) => one.id, grantRow);
  write(find("grants-count"), grants.length);
}

// Refused

function refusedRow() {
  const row = element("li");
  row.update = (one) => {
    const shown = JSON.stringify([one, ago(one.last)]);
    if (row.shown === shown) return;
    row.shown = shown;
    row.replaceChildren(
      destination(one.destination),
      element("span", "count", `${one.count > 1 ? `${one.count} × · ` : ""}${ago(one.last)}`),
      element("span", "who wide", element("span", "code", one.code), ` ${[one.scope, one.agent, one.method].filter(Boolean).join(" · ")}`),
      element("span", "said wide", one.detail ?? ""),
      ...(one.reason ? [element("q", "said wide", one.reason)] : []),
    );
  };
  return row;
}

function showRefusals(refusals) {
  const shown = allRefusals ? refusals : refusals.slice(0, REFUSALS_SHOWN);
  reconcile(find("refused-list"), shown, (one) => JSON.stringify([one.agent, one.scope, one.destination, one.code]), refusedRow);
  write(find("refused-count"), refusals.reduce((sum, one) => sum + one.count, 0));
  const more = find("refused-more");
  more.hidden = refusals.length <= REFUSALS_SHOWN;
  write(more, allRefusals ? "Show fewer" : `Show all ${refusals.length}`);
}

// Reached: one strip of stacked bars for each destination

function strip(one, until, slot, highest) {
  const { permitted, refused } = one;
  const slots = permitted.length;
  const name = one.destination ?? many(one.others, "other destination");
  const total = (counts) => counts.reduce((sum, count) => sum + count, 0);
  const words = `${name}: ${total(permitted)} permitted, ${total(refused)} refused in 24 hours`;
  const title = (text) => drawn("title", {}, visible(text));
  const svg = drawn("svg", { viewBox: `0 0 ${slots} 22`, preserveAspectRatio: "none", role: "img", "aria-label": visible(words) });
  for (let quarter = 1; quarter < 4; quarter += 1) {
    const x = String((slots * quarter) / 4);
    svg.append(drawn("line", { x1: x, x2: x, y1: "0", y2: "22" }));
  }
  for (let at = 0; at < slots; at += 1) {
    const all = permitted[at] + refused[at];
    if (!all) continue;
    // By the square root, and never so low that it is not seen: one request matters beside a thousand.
    const height = Math.max(4, 21 * Math.sqrt(all / highest));
    const low = (height * refused[at]) / all;
    const begin = new Date(until - (slots - at) * slot * 1000);
    const text = `${clock(begin)} – ${clock(begin.getTime() + slot * 1000)}: ${permitted[at]} permitted, ${refused[at]} refused`;
    const bar = (className, y, tall) => drawn("rect", { class: className, x: String(at + 0.12), width: "0.76", y: String(y), height: String(tall) }, title(text));
    if (permitted[at]) svg.append(bar("permitted", 22 - height, height - low));
    if (refused[at]) svg.append(bar("refused", 22 - low, low));
  }
  const label = one.destination ? destination(name) : element("span", "who", name);
  label.title = visible(name);
  return element("div", "strip", label, svg, element("span", "count", total(permitted) + total(refused)));
}

let reached;
function showDestinations(found) {
  const now = JSON.stringify(found);
  if (now === reached) return;
  reached = now;
  const until = new Date(found.until).getTime();
  const blocks = found.scopes.map(({ scope, agent, destinations }) => {
    const highest = Math.max(...destinations.flatMap((one) => one.permitted.map((count, at) => count + one.refused[at])));
    const name = scope ?? (agent ? `${agent}, without a scope` : "senders that are no agent");
    return element("div", "scope", element("h3", "", name), ...destinations.map((one) => strip(one, until, found.slot, highest)));
  });
  if (blocks.length) {
    const day = found.slot * 48 * 1000;
    const times = [0, 1, 2, 3, 4].map((quarter) => element("span", "", clock(until - day + (day * quarter) / 4)));
    const axis = element("div", "strip axis", element("span"), element("div", "", ...times), element("span"));
    axis.setAttribute("aria-hidden", "true");
    blocks.push(axis);
  }
  find("reached-scopes").replaceChildren(...blocks);
}

// Kill switch

const named = ({ kind, name }) => (kind === "all" ? "everything" : `${kind} ${name}`);

function pausedRow(one) {
  const query = one.kind === "all" ? "all=true" : `${one.kind}=${encodeURIComponent(one.name)}`;
  return element(
    "li", "",
    element("span", "", element("b", "host", named(one)), element("span", "who said", `by ${one.by}, ${ago(one.since)}`)),
    button("Resume", `Resume ${named(one)}`, "", async () => {
      await ask("DELETE", `/v1/pauses?${query}`);
      return `Resumed ${named(one)}.`;
    }),
  );
}

function showPauses(pauses) {
  reconcile(find("paused-list"), pauses, (one) => JSON.stringify(one), pausedRow);
  write(find("paused-count"), pauses.length);
  document.querySelector('nav a[href="#paused"]').classList.toggle("stopped", pauses.length > 0);
}

function showChoices(rights, policy) {
  const targets = rights.role === "operator"
    ? [{ kind: "all" }, ...policy.agents.map((name) => ({ kind: "agent", name })), ...policy.scopes.map((name) => ({ kind: "scope", name }))]
    : rights.scopes.map((name) => ({ kind: "scope", name }));
  const select = find("pause-what");
  const wanted = ["", ...targets.map((one) => JSON.stringify(one))];
  if (wanted.join() === [...select.options].map((one) => one.value).join()) return;
  select.replaceChildren(new Option("choose", ""), ...targets.map((one) => new Option(visible(named(one)), JSON.stringify(one))));
}

find("pause").addEventListener("submit", (event) => {
  event.preventDefault();
  const target = JSON.parse(find("pause-what").value);
  attempt(async () => {
    const { revoked, warning } = await ask("POST", "/v1/pauses", target.kind === "all" ? { all: true } : { [target.kind]: target.name });
    return `Paused ${named(target)}: ${many(revoked.length, "grant")} taken back.${warning ? ` But: ${warning}` : ""}`;
  });
});

// Life

function show(which) {
  find("console").hidden = which !== "console";
  find("sign-in").hidden = which !== "sign-in";
  find("leave").hidden = which !== "console";
}

function link(state, text) {
  find("link").dataset.state = state;
  write(find("link"), text);
}

function leave(why) {
  session = null;
  sessionStorage.removeItem(STORE);
  write(find("who"), "");
  write(find("why"), why ?? "You have signed out.");
  link("off", "not signed in");
  show("sign-in");
}

async function look() {
  const answers = ["grants", "approvals", "pauses", "recent", "whoami", "policy"].map((what) => ask("GET", `/v1/${what}`));
  const [grants, approvals, pauses, recent, rights, policy] = await Promise.all(answers);
  showApprovals(approvals);
  showGrants(grants);
  showPauses(pauses);
  showRefusals(recent.refusals);
  showDestinations(recent.destinations);
  showChoices(rights, policy);
  write(find("who"), `${rights.name} · ${rights.role === "operator" ? "operator" : `owner of ${rights.scopes.join(", ")}`}`);
  answeredAt = Date.now();
  link("live", "live");
  show("console");
}

let looking = null;
async function refresh() {
  if (!session) return;
  // A look that has begun may be older than what was just changed.
  await looking;
  looking = look().catch((error) => {
    if (!session) return;
    const since = answeredAt ? `since ${clock(answeredAt)}` : "yet";
    link("lost", error instanceof Refused ? error.message : `no answer ${since}: this may be out of date`);
  });
  await looking;
}

async function follow() {
  if (!document.hidden) await refresh();
  setTimeout(follow, POLL);
}

async function signIn() {
  const invitation = /^#([\w-]{43})$/u.exec(location.hash)?.[1];
  if (invitation) {
    history.replaceState(null, "", "/");
    try {
      ({ session } = await ask("POST", "/v1/session", undefined, invitation));
      sessionStorage.setItem(STORE, session);
    } catch (error) {
      leave(error instanceof Refused ? error.message : "The proxy does not answer.");
    }
  }
  if (session) await refresh();
  else if (!invitation) show("sign-in");
}

find("refused-more").addEventListener("click", () => {
  allRefusals = !allRefusals;
  refresh();
});
find("leave").addEventListener("click", async () => {
  await ask("DELETE", "/v1/session").catch(() => {});
  leave();
});
window.addEventListener("hashchange", signIn);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
setInterval(() => [...find("grants-list").children].forEach((row) => row.tick()), 500);
await signIn();
follow();
