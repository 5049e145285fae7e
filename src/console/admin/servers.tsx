import { useCallback, useMemo, useState } from "preact/hooks";
import { ask } from "../api/client.js";
import { ago, bytes, exact, usePolled, useTitle } from "../parts/hooks.js";
import { Badge, Empty, Loading, Name, ProblemNotice, Tiles } from "../parts/notice.js";
import { type Column, Search, Table } from "../parts/table.js";
import {
  type Servers as Answer,
  type Host,
  Operations,
  referenceOf,
  type Server,
  ServerAction,
  useOperations,
  type Verb,
} from "./operations.js";

const EVERY_MS = 3_000;

interface Chosen {
  server: Server;
  verb: Verb;
}

/** The hosts and their servers, with the actions of an operator. */
export function Servers() {
  const [search, setSearch] = useState("");
  const [chosen, setChosen] = useState<Chosen | null>(null);
  useTitle("Servers");
  const load = useCallback(async (signal: AbortSignal) => {
    const [{ servers, pool }, { hosts }] = await Promise.all([
      ask<Answer>("GET", "/v1/servers", { signal }),
      ask<{ hosts: Host[] }>("GET", "/v1/hosts", { signal }),
    ]);
    return { servers, pool, hosts };
  }, []);
  const { value, problem } = usePolled(load, EVERY_MS);
  const close = useCallback(() => setChosen(null), []);
  const found = useMemo(() => matching(value?.servers ?? [], search), [value, search]);
  return (
    <div class="page wide">
      <div class="page-head">
        <h1>Servers</h1>
        <Search label="Search the servers" value={search} onValue={setSearch} />
      </div>
      <Operations />
      <ProblemNotice problem={problem} />
      {value === undefined && problem === undefined && <Loading />}
      {value !== undefined && (
        <>
          {value.pool.state === "closed" && (
            <p class="notice warn">
              This host admits no new servers and turns: {value.pool.reason ?? "it is drained"}.
            </p>
          )}
          <Tiles
            tiles={[
              ["Servers that run", value.servers.filter(({ pid }) => pid !== null).length],
              ["Turns in flight", sum(value.servers, ({ turns }) => turns)],
              ["Sessions in memory", sum(value.servers, ({ activeSessions }) => activeSessions)],
              ["Memory", bytes(sum(value.servers, ({ memoryBytes }) => memoryBytes))],
            ]}
          />
          <Hosts hosts={value.hosts} />
          <h2 class="section">Servers</h2>
          {found.length === 0 ? (
            <Empty title={search === "" ? "There are no servers." : "No server matches."}>
              {search === "" && <p class="quiet">The fleet starts a server when a user creates or uses a session.</p>}
            </Empty>
          ) : (
            <ServerTable servers={found} hasHosts={value.hosts.length > 1} choose={setChosen} />
          )}
        </>
      )}
      {chosen !== null && <ServerAction {...chosen} close={close} />}
    </div>
  );
}

function ServerTable({
  servers,
  hasHosts,
  choose,
}: {
  servers: readonly Server[];
  hasHosts: boolean;
  choose(chosen: Chosen): void;
}) {
  const running = useOperations().filter(({ state }) => state === "running");
  const columns: Column<Server>[] = [
    { title: "Server", by: referenceOf, cell: (server) => <ServerName server={server} /> },
    { title: "State", by: ({ state }) => state, cell: (server) => <State server={server} /> },
    ...(hasHosts
      ? [{ title: "Host", by: (each: Server) => each.hostName, cell: (each: Server) => each.hostName }]
      : []),
    { title: "Turns", isNumber: true, by: ({ turns }) => turns, cell: ({ turns }) => turns ?? "–" },
    {
      title: "Sessions",
      isNumber: true,
      by: ({ activeSessions }) => activeSessions,
      cell: ({ activeSessions, sessions }) => (
        <span title={`${activeSessions} of ${sessions ?? "?"} sessions are in memory`}>
          {activeSessions}
          <span class="quiet"> / {sessions ?? "?"}</span>
        </span>
      ),
    },
    {
      title: "Memory",
      isNumber: true,
      by: ({ memoryBytes }) => memoryBytes,
      cell: ({ memoryBytes }) => bytes(memoryBytes),
    },
    { title: "Sandbox", by: ({ sandbox }) => sandbox.mode, cell: ({ sandbox }) => <Sandbox {...sandbox} /> },
    { title: "Started", by: ({ startedAt }) => startedAt, cell: ({ startedAt }) => <Since time={startedAt} /> },
    {
      title: "Actions",
      cell: (server) => {
        const operation = running.find((each) => each.server === referenceOf(server));
        return <Actions server={server} isBusy={operation !== undefined} choose={choose} />;
      },
    },
  ];
  return <Table label="Servers" columns={columns} rows={servers} idOf={referenceOf} sortedBy="Server" />;
}

function ServerName({ server: { id, user, pid, url, version } }: { server: Server }) {
  return (
    <>
      <Name class="cell-title" text={user ?? id} />
      <span class="cell-note" title={version === null ? undefined : `Copilot ${version}`}>
        {user === null ? "shared" : <Name text={id} />}
        {pid !== null && <span> · process {pid}</span>}
        {url !== null && <span class="sr-only"> · {url}</span>}
      </span>
    </>
  );
}

function State({ server: { state, failure, away } }: { server: Server }) {
  return (
    <>
      <Badge word={away ? "away" : state} />
      {failure !== null && <span class="cell-note bad">{failure}</span>}
    </>
  );
}

function Sandbox({ mode, not }: Server["sandbox"]) {
  if (mode === "none") return <Badge word="no sandbox" />;
  if (not.length === 0) return <>{mode}</>;
  return (
    <>
      {mode}
      <span class="cell-note warn">
        {not.map((word) => `${word}: ${word === "resources" ? "unlimited" : "open"}`).join(", ")}
      </span>
    </>
  );
}

function Since({ time }: { time: string | null }) {
  if (time === null) return <span class="quiet">–</span>;
  return (
    <time dateTime={time} title={exact(time)}>
      {ago(time)}
    </time>
  );
}

function Actions({ server, isBusy, choose }: { server: Server; isBusy: boolean; choose(chosen: Chosen): void }) {
  const isDown = server.pid === null;
  const button = (verb: Verb, title: string, isDisabled: boolean) => (
    <button
      type="button"
      class="button small"
      disabled={isBusy || server.away || isDisabled}
      onClick={() => choose({ server, verb })}
      aria-label={`${title} ${referenceOf(server)}`}
    >
      {title}
    </button>
  );
  return (
    <span class="actions">
      {button("restart", isDown ? "Start" : "Restart", false)}
      {button("drain", "Drain", isDown)}
      {button("stop", "Stop", isDown)}
    </span>
  );
}

function matching(servers: readonly Server[], search: string): readonly Server[] {
  const wanted = search.trim().toLowerCase();
  return servers.filter(({ id, user, hostName, state, sandbox }) =>
    [id, user, hostName, state, sandbox.mode].join(" ").toLowerCase().includes(wanted),
  );
}

function sum(servers: readonly Server[], of: (server: Server) => number | null): number {
  return servers.reduce((total, server) => total + (of(server) ?? 0), 0);
}

const COLUMNS: readonly Column<Host>[] = [
  { title: "Host", by: ({ name }) => name, cell: ({ name }) => <bdi class="cell-title">{name}</bdi> },
  { title: "State", by: ({ state }) => state, cell: ({ state }) => <Badge word={state} /> },
  { title: "Servers", isNumber: true, by: ({ servers }) => servers, cell: ({ servers }) => servers },
  { title: "Sessions in memory", isNumber: true, by: ({ sessions }) => sessions, cell: ({ sessions }) => sessions },
  {
    title: "Memory",
    isNumber: true,
    by: ({ memoryBytes }) => memoryBytes,
    cell: ({ memoryBytes }) => bytes(memoryBytes),
  },
  { title: "Front door", cell: ({ door }) => (door === null ? <span class="quiet">–</span> : <code>{door}</code>) },
  {
    title: "Heartbeat",
    isNumber: true,
    by: ({ heartbeatAgeMs }) => heartbeatAgeMs,
    cell: ({ heartbeatAgeMs }) =>
      heartbeatAgeMs === null ? <span class="quiet">–</span> : `${Math.round(heartbeatAgeMs / 1_000)} s ago`,
  },
  {
    title: "Serves since",
    by: ({ startedAt }) => startedAt,
    cell: ({ startedAt }) =>
      startedAt === null ? <span class="quiet">–</span> : <time title={exact(startedAt)}>{ago(startedAt)}</time>,
  },
];

function Hosts({ hosts }: { hosts: readonly Host[] }) {
  return (
    <>
      <h2 class="section">Hosts</h2>
      <Table label="Hosts" columns={COLUMNS} rows={hosts} idOf={({ name }) => name} sortedBy="Host" />
    </>
  );
}
