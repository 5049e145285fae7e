import { Badge } from "../parts/notice.js";
import { ago, bytes, exact } from "../parts/show.js";
import { type Column, Table } from "../parts/table.js";
import type { Host } from "./types.js";

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

export function Hosts({ hosts }: { hosts: readonly Host[] }) {
  return (
    <>
      <h2 class="section">Hosts</h2>
      <Table label="Hosts" columns={COLUMNS} rows={hosts} idOf={({ name }) => name} sortedBy="Host" />
    </>
  );
}
