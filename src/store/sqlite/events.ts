import { join } from "node:path";
import { ensureStateFolder, stateFolderCheck } from "../file/state-folder.js";
import { SqliteFile } from "./rows.js";

const TABLES = `
CREATE TABLE events (seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, line TEXT NOT NULL);
CREATE INDEX events_by_time ON events (at);
`;

/** The file of a host's audit log: each line with its number, and its time in milliseconds since the epoch. */
export function eventsFile(root: string): SqliteFile {
  const folder = { checkFolder: stateFolderCheck(root), ensureFolder: () => ensureStateFolder(root) };
  return new SqliteFile(join(root, "events.db"), TABLES, { ...folder, synchronous: "NORMAL" });
}
