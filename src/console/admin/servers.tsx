import { useCallback } from "preact/hooks";
import { ask } from "../api/client.js";
import type { Answer, Host, Server } from "../api/types.js";
import { useDialog } from "../parts/dialog.js";
import { bytes, usePolled } from "../parts/hooks.js";
import { Badge, Name, Tiles } from "../parts/notice.js";
import { actions, type Column, ListPage, number, Table, time } from "../parts/table.js";
import { Operations, referenceOf, ServerAction, useOperations, type Verb } from "./operations.js";

const EVERY_MS = 3_000;

/** The hosts and their servers, with the actions of an operator. */
export function Servers() {
  const load = useCallback(async (signal: AbortSignal) => {
    const [{ servers, pool }, { hosts }] = await Promise.all([
      ask<Answer<"listServers">>("GET", "/v1/servers", { signal }),
      ask<Answer<"listHosts">>("GET", "/v1/hosts", { signal }),
    ]);
    return { servers, pool, hosts };
  }, []);
  const polled = usePolled(load, EVERY_MS);
  const [dialog, show] = useDialog(polled.reload);
  const busy = new Set(useOperations().flatMap(({ state, server }) => (state === "running" ? [server] : [])));
  const hasHosts = (polled.value?.hosts.length ?? 0) > 1;
  const columns: Column<Server>[] = [
    ...NAMES,
    ...(hasHosts ? [HOST] : []),
    ...COLUMNS,
    actions<Server>(referenceOf, (server) => {
      const isDown = server.pid === null;
      const isBusy = server.away || busy.has(referenceOf(server));
      const act = (verb: Verb) => () => show(<ServerAction server={server} verb={verb} />);
      return [
        { title: isDown ? "Start" : "Restart", isDisabled: isBusy, act: act("restart") },
        { title: "Drain", isDisabled: isBusy || isDown, act: act("drain") },
        { title: "Stop", isDisabled: isBusy || isDown, act: act("stop") },
      ];
    }),
  ];
  return (
    <ListPage
      title="Servers"
      noun="server"
      polled={polled}
      rowsOf={({ servers }) => servers}
      wordsOf={({ id, user, hostName, state, sandbox }) => [id, user, hostName, state, sandbox.mode]}
      none="There are no servers."
      hint="The fleet starts a server when a user creates or uses a session."
      notices={
        <>
          {dialog}
          <Operations />
        </>
      }
      above={(value) => <Overview {...value} />}
    >
      {(found) => <Table label="Servers" columns={columns} rows={found} idOf={referenceOf} sortedBy="Server" />}
    </ListPage>
  );
}

function Overview({ servers, pool, hosts }: Answer<"listServers"> & Answer<"listHosts">) {
  const sum = (of: (server: Server) => number | null) => servers.reduce((total, each) => total + (of(each) ?? 0), 0);
  return (
    <>
      {pool.state === "closed" && (
        <p class="notice warn">This host admits no new servers and turns: {pool.reason ?? "it is drained"}.</p>
      )}
      <Tiles
        tiles={[
          ["Servers that run", servers.filter(({ pid }) => pid !== null).length],
          ["Turns in flight", sum(({ turns }) => turns)],
          ["Sessions in memory", sum(({ activeSessions }) => activeSessions)],
          ["Memory", bytes(sum(({ memoryBytes }) => memoryBytes))],
        ]}
      />
      <h2 class="section">Hosts</h2>
      <Table label="Hosts" columns={HOST_COLUMNS} rows={hosts} idOf={({ name }) => name} sortedBy="Host" />
      <h2 class="section">Servers</h2>
    </>
  );
}

const NAMES: readonly Column<Server>[] = [
  {
    title: "Server",
    by: referenceOf,
    cell: ({ id, user }) => <Name class="cell-title" text={user ?? id} />,
    note: ({ id, user, pid, url, version }) => (
      <span title={version === null ? undefined : `Copilot ${version}`}>
        {user === null ? "shared" : <Name text={id} />}
        {pid !== null && <span> · process {pid}</span>}
        {url !== null && <span class="sr-only"> · {url}</span>}
      </span>
    ),
  },
  {
    title: "State",
    by: ({ state }) => state,
    cell: ({ state, away }) => <Badge word={away ? "away" : state} />,
    note: ({ failure }) => failure !== null && <span class="bad">{failure}</span>,
  },
];

const HOST: Column<Server> = { title: "Host", by: ({ hostName }) => hostName, cell: ({ hostName }) => hostName };

const COLUMNS: readonly Column<Server>[] = [
  number("Turns", ({ turns }) => turns),
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
  number("Memory", ({ memoryBytes }) => memoryBytes, { show: bytes }),
  {
    title: "Sandbox",
    by: ({ sandbox }) => sandbox.mode,
    cell: ({ sandbox: { mode } }) => (mode === "none" ? <Badge word="no sandbox" /> : mode),
    note: ({ sandbox: { mode, not } }) => {
      const gaps = not.map((word) => `${word}: ${word === "resources" ? "unlimited" : "open"}`);
      return mode !== "none" && gaps.length > 0 && <span class="warn">{gaps.join(", ")}</span>;
    },
  },
  time("Started", ({ startedAt }) => startedAt),
];

const HOST_COLUMNS: readonly Column<Host>[] = [
  { title: "Host", by: ({ name }) => name, cell: ({ name }) => <bdi class="cell-title">{name}</bdi> },
  { title: "State", by: ({ state }) => state, cell: ({ state }) => <Badge word={state} /> },
  number("Servers", ({ servers }) => servers),
  number("Sessions in memory", ({ sessions }) => sessions),
  number("Memory", ({ memoryBytes }) => memoryBytes, { show: bytes }),
  { title: "Front door", cell: ({ door }) => (door === null ? <span class="quiet">–</span> : <code>{door}</code>) },
  number("Heartbeat", ({ heartbeatAgeMs }) => heartbeatAgeMs, { show: (ms) => `${Math.round(ms / 1_000)} s ago` }),
  time("Serves since", ({ startedAt }) => startedAt),
];
