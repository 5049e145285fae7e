import type { BusyServer, HostView, UserView } from "../../../peers/overview.js";
import { renderAge, renderBytes, renderSince, renderState, USER } from "../table.js";
import type { List } from "./list.js";
import { SERVERS } from "./servers.js";

/**
 * A table that is too wide first leaves out the columns with the highest `yields`. Two columns have other `yields` here
 * than in `ps`, because memory matters more here, and the number of sessions less.
 */
const YIELDS: Readonly<Record<string, number>> = { memoryBytes: 1, sessions: 5 };
const columns = SERVERS.columns.map((column) => ({ ...column, yields: YIELDS[column.field] ?? column.yields ?? 0 }));
const afterState = columns.findIndex(({ field }) => field === "state") + 1;

/** The list of `ps`, with two more columns: the current turns of a server and its latency. */
export const BUSY_SERVERS: List<BusyServer> = {
  ...SERVERS,
  columns: [
    ...columns.slice(0, afterState),
    { heading: "TURNS", field: "turns" },
    {
      ...{ heading: "LATENCY", field: "latencyMs", yields: 1 },
      cell: ({ latencyMs }) => (latencyMs === null ? null : `${Math.ceil(latencyMs)} ms`),
    },
    ...columns.slice(afterState),
  ],
};

export const HOSTS: List<HostView> = {
  kind: "host",
  idOf: ({ name }) => name,
  columns: [
    { heading: "HOST", field: "name", cut: "middle" },
    { heading: "STATE", field: "state", cell: (row) => renderState(row.state) },
    { heading: "TERM", field: "term", yields: 6 },
    {
      ...{ heading: "HEARTBEAT", field: "heartbeatAgeMs", yields: 4 },
      cell: ({ heartbeatAgeMs }) => renderAge(heartbeatAgeMs),
    },
    { heading: "FRONT DOOR", field: "door", yields: 5 },
    { heading: "SERVERS", field: "servers" },
    { heading: "LOADED", field: "sessions", yields: 2 },
    { heading: "MEMORY", field: "memoryBytes", yields: 3, cell: ({ memoryBytes }) => renderBytes(memoryBytes) },
  ],
};

export const USERS: List<UserView> = {
  kind: "user",
  idOf: (row) => row.user,
  columns: [
    { ...USER, field: "user" },
    { heading: "SERVER", field: "state", cell: (row) => (row.state === null ? null : renderState(row.state)) },
    { heading: "TURNS", field: "turns" },
    { heading: "SESSIONS", field: "sessions", yields: 1 },
    { heading: "LOADED", field: "active", yields: 3 },
    { heading: "MEMORY", field: "memoryBytes", yields: 4, cell: ({ memoryBytes }) => renderBytes(memoryBytes) },
    {
      ...{ heading: "LAST USE", field: "lastUsedAt", yields: 2, isAge: true },
      cell: ({ lastUsedAt }) => (lastUsedAt === null ? null : renderSince(lastUsedAt)),
    },
  ],
};
