import { referenceOf, type ServerView } from "../../../pool/server.js";
import { renderAge, renderBytes, renderState, SERVER, USER } from "../table.js";
import type { List } from "./list.js";

export const SERVERS: List<ServerView> = {
  kind: "server",
  idOf: referenceOf,
  columns: [
    { ...SERVER, field: "id" },
    { heading: "HOST", field: "hostName", yields: 2, cut: "middle" },
    { ...USER, field: "user", cell: ({ user }) => user ?? "(shared)" },
    { heading: "URL", field: "url", yields: 5 },
    { heading: "PID", field: "pid", yields: 7 },
    { heading: "STATE", field: "state", cell: ({ state }) => renderState(state) },
    { heading: "UPTIME", field: "uptimeMs", yields: 4, cell: ({ uptimeMs }) => renderAge(uptimeMs) },
    { heading: "MEMORY", field: "memoryBytes", yields: 6, cell: ({ memoryBytes }) => renderBytes(memoryBytes) },
    { heading: "SESSIONS", field: "sessions", yields: 1 },
    { heading: "LOADED", field: "activeSessions", yields: 3 },
    { heading: "ISOLATION", field: "isolation", wide: true },
    { heading: "VERSION", field: "version", wide: true },
    { heading: "CRASHES", field: "crashes", wide: true },
    { heading: "HOME", field: "home", wide: true },
    { heading: "CWD", field: "cwd", wide: true },
    { heading: "LOG", field: "log", wide: true },
    { heading: "FAILURE", field: "failure", wide: true },
  ],
};
