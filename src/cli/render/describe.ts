import { limitTexts, notRestricted } from "../../base/sandbox.js";
import type { QuotaPart } from "../../base/usage.js";
import { printable, printableLines } from "../../base/values/text.js";
import type {
  Description,
  ServerDescription,
  ServerFacts,
  SessionDescription,
  UserDescription,
} from "../../hosts/overview.js";
import { referenceOf, type ServerView } from "../../servers/server.js";
import type { SessionView } from "../../sessions/view.js";
import { colour } from "./colour.js";
import { SERVERS, SESSIONS, shownState, TOKENS, withoutHost } from "./columns.js";
import {
  type Cell,
  type List,
  renderAge,
  renderBytes,
  renderList,
  renderSince,
  renderState,
  renderUntil,
} from "./table.js";

/** A line with a label. It is left out if its value is null or empty. */
type Fact = readonly [label: string, value: Cell];

interface Section {
  heading: string;
  lines: string;
}

export function renderDescription(description: Description): string {
  const { title, facts, sections, next } = partsOf(description);
  const shown = facts.filter(([, value]) => value !== null && value !== "");
  const width = Math.max(...shown.map(([label]) => label.length)) + 1;
  return [
    colour.bold(title),
    ...shown.map(([label, value]) => `  ${`${label}:`.padEnd(width)}  ${value}`),
    ...sections.flatMap(({ heading, lines }) => ["", colour.bold(heading), lines]),
    "",
    colour.bold("Next:"),
    ...next.map((command) => `  copilotfleet ${command}`),
  ].join("\n");
}

interface Parts {
  title: string;
  facts: Fact[];
  sections: Section[];
  /** Commands that the user may want to type next, without "copilotfleet". */
  next: string[];
}

function partsOf(description: Description): Parts {
  switch (description.kind) {
    case "server":
      return partsOfServer(description);
    case "session":
      return partsOfSession(description);
    case "user":
      return partsOfUser(description);
  }
}

function partsOfServer({ server, record, sessions, logLines }: ServerDescription): Parts {
  const { crashes, startedAt, pid, memoryBytes, activeSessions, version } = server;
  const memory = memoryBytes === null ? "" : `, ${renderBytes(memoryBytes)} of private memory`;
  return {
    title: `Server ${server.id}`,
    facts: [
      ["User", server.user ?? "none, because it is shared"],
      ["Host", server.hostName],
      ["State", stateOf(server, record)],
      ["Reason", text(server.failure)],
      ["Should run", record.desired === null ? null : record.desired === "running" ? "yes" : "no"],
      ["Crashes", crashes === 0 ? null : `${crashes} in a row`],
      ["Process", pid === null ? null : `${pid}${memory}`],
      ["Launch", record.launchId],
      ["URL", server.url],
      ["Last port", server.url === null ? record.lastPort : null],
      ["Started", when(startedAt)],
      ["Created", when(record.createdAt)],
      ["Isolation", server.isolation],
      ["Sandbox", server.sandbox.mode],
      ["Not restricted", colour.yellow(notRestricted(server.sandbox.not))],
      ["Network", server.sandbox.network ?? null],
      ...factsOfLimits(server),
      ["Version", version],
      ["Runtime", text(record.runtimePath)],
      ["GitHub token", tokenSource(record)],
      ["Home", text(server.home)],
      ["Working folder", text(server.cwd)],
      ["Log", text(server.log)],
    ],
    sections: [
      ...table(`Sessions (${activeSessions} in memory):`, SESSIONS, sessions, ["server", "host"]),
      ...(logLines.length === 0 ? [] : [{ heading: "End of the log:", lines: logLines.map(printable).join("\n") }]),
    ],
    next: nextForServer(server),
  };
}

function factsOfLimits({ sandbox: { limits } }: ServerView): Fact[] {
  if (limits === undefined) return [];
  const { memory = 0, processes = 0, cpu = 0 } = limits.reached ?? {};
  const reached = [
    ...(memory === 0 ? [] : [`memory (killed: ${memory})`]),
    ...(processes === 0 ? [] : [`processes (not started: ${processes})`]),
    ...(cpu === 0 ? [] : [`cpu (waited: ${renderAge(cpu * 100)})`]),
  ];
  return [
    ["Limits", `${limitTexts(limits).join(", ")} (by ${limits.by})`],
    ["Limits reached", reached.join(", ")],
  ];
}

function nextForServer(server: ServerView): string[] {
  const id = referenceOf(server);
  if (server.away) return ["top --once", "ps"];
  const start = server.user === null ? `restart ${id}` : `spawn --user ${server.user}`;
  return server.pid === null ? [start, `logs ${id}`] : [`logs ${id} -f`, `restart ${id}`, `stop ${id}`];
}

function partsOfSession({ session, server, ...more }: SessionDescription): Parts {
  const { id, owner, lease, members, serverId, model } = session;
  const usedModel = more.effectiveModel;
  return {
    title: `Session ${id}`,
    facts: [
      ["Title", session.title === null ? null : printableLines(session.title)],
      ["Owner", owner],
      ["Kind", `${session.kind}, ${session.persistence}`],
      ["Members", members.join(", ")],
      ["Purpose", text(session.purpose)],
      [
        "Model",
        usedModel === model
          ? text(model)
          : `${text(usedModel)} (${usedModel === "echo" ? "provider.type" : "session.model"})`,
      ],
      ["State", renderState(shownState(session))],
      ["Server", server === null ? serverId : `${serverId} (${renderState(server.state)})`],
      ["Host", session.host],
      ["Folder", text(more.folder)],
      ["Size", renderBytes(session.sizeBytes)],
      ["Turns", more.turns === null ? null : `${more.turns} completed`],
      ["Lease", lease === null ? "none" : `held by ${lease.holder}, ends in ${renderAge(lease.remainingMs)}`],
      ["Lease ends", lease === null ? null : lease.expiresAt],
      ["Taken over", lease?.stealReason == null ? null : text(lease.stealReason)],
      ["Created", when(session.createdAt)],
      ["Last use", when(session.lastUsedAt)],
      ["Expires", expiryText(session)],
    ],
    sections: [],
    next: [
      `resume ${id} --user ${owner}`,
      ...(lease === null ? [] : [`lock ${id} --show`]),
      ...(server === null ? [] : [`describe server/${referenceOf(server)}`]),
      `describe user/${owner}`,
    ],
  };
}

function expiryText({ expiresAt, ttlMs }: SessionView): string | null {
  if (expiresAt !== null) return `${expiresAt} (${renderUntil(expiresAt)}), if nobody uses it`;
  return ttlMs === null ? "never (session.ttl)" : null;
}

function partsOfUser({ user, placement, suspended, servers, sessions, tokens, quota }: UserDescription): Parts {
  const hosts = [...new Set([...servers.map(({ hostName }) => hostName), ...sessions.map(({ host }) => host)])];
  const owned = sessions.filter(({ owner }) => owner === user).length;
  return {
    title: `User ${user}`,
    facts: [
      ["Suspended", suspended && [suspended.since, suspended.reason ?? []].flat().join(": ")],
      ["Host", placement?.host ?? null],
      ["Placed on", placement?.serverId ?? null],
      ["Servers", servers.length],
      ["Sessions", owned === sessions.length ? owned : `${owned} own, ${sessions.length - owned} of others`],
      ["Tokens", tokens.length],
      ["Copilot plan", quota?.map(quotaText).join("; ") ?? null],
    ],
    sections: [
      ...table("Servers:", SERVERS, servers, ["user", "sessions", ...withoutHost(hosts)]),
      ...table("Sessions:", SESSIONS, sessions, [
        ...(owned === sessions.length ? ["owner"] : []),
        ...withoutHost(hosts),
      ]),
      ...table("Tokens:", TOKENS, tokens, ["user"]),
    ],
    next: [
      `create --user ${user}`,
      ...servers.map((server) => `describe server/${referenceOf(server)}`),
      `route --user ${user}`,
      ...(tokens.length === 0 ? [`token issue --user ${user} --ttl 30d`] : []),
    ],
  };
}

function quotaText({ kind, used, included, overage, resetsAt }: QuotaPart): string {
  const beyond = overage === 0 ? "" : `, and ${overage} more`;
  const end = resetsAt === null ? "" : ` until ${resetsAt.slice(0, 10)}`;
  return printable(`${kind}: ${used} of ${included ?? "any number of"} requests used${beyond}${end}`);
}

function table<Row>(heading: string, list: List<Row>, rows: readonly Row[], without: readonly string[]): Section[] {
  return rows.length === 0 ? [] : [{ heading, lines: renderList(list, rows, { format: "table", without }) }];
}

function stateOf({ state, away }: ServerView, { isBeingReplaced }: ServerFacts): string {
  if (away) return `${renderState(state)}, as its host recorded it`;
  return isBeingReplaced
    ? `${renderState(state)}, and a new process is about to replace its process`
    : renderState(state);
}

function tokenSource({ gitHubToken }: ServerFacts): string | null {
  if (gitHubToken === null) return null;
  const of = {
    env: "variable",
    file: "file",
    command: "command",
    caller: "program that uses the library",
    app: "GitHub App",
  };
  return `from a ${of[gitHubToken.from]}`;
}

function text(value: string | null): string | null {
  return value === null ? null : printable(value);
}

function when(date: string | null): string | null {
  return date === null ? null : `${printable(date)} (${renderSince(date)} ago)`;
}
