import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect, it } from "vitest";
import type { ServerRecord } from "../../src/base/server.js";
import type { SessionRecord } from "../../src/base/session.js";
import type { HostDirectory } from "../../src/servers/directory.js";
import { noteOpened, stampOf } from "../../src/sessions/memory/open-notes.js";
import type { SessionsContext } from "../../src/sessions/problems.js";
import { type Loading, load, type Transport } from "../../src/sessions/use/load.js";
import { serverRecord, sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const NEVER = new AbortController().signal;
/** The runtime's answer to `session.resume` for a session that it neither has in memory nor finds on its disk. */
const UNKNOWN = new Error("Request session.resume failed with message: Session not found: one");

interface Case {
  record?: Partial<SessionRecord>;
  /** The files in the session's folder. Undefined if the session has no folder. */
  folder?: readonly string[];
  isNew?: boolean;
  /** Whether a client chose the session's folder, so that only the server knows where it is. */
  hasOwnFolder?: boolean;
  /** Whether the server refuses to resume the session. */
  isUnknown?: boolean;
}

/** Loads the session `one` on the server. */
async function loadOne<T>(
  server: ServerRecord,
  record: Partial<SessionRecord>,
  transport: Transport<T>,
  isNew = false,
) {
  const directory = { has: async () => true, assertStorage: async () => undefined } as unknown as HostDirectory;
  const config = { auth: null } as unknown as SessionsContext["config"];
  const provider = { of: async () => null };
  const context = { directory, config, env: {}, provider, pool: { tokenSourceOf: () => null } };
  const used = { record: sessionRecord("one", record), server, model: { isGiven: false } };
  return await load(context, used, transport, { isNew, isAlone: true, signal: NEVER });
}

/** Loads the session `one`, and returns what the transport was asked to do, in order: "create" or "resume". */
async function loading({ record, folder, isNew = false, hasOwnFolder = false, isUnknown = false }: Case) {
  const home = join(await temporaryRoot(), "servers", "s1", "home");
  const path = join(home, "session-state", "one");
  mkdirSync(folder === undefined ? dirname(path) : path, { recursive: true });
  for (const name of folder ?? []) writeFileSync(join(path, name), "{}\n");
  const server = serverRecord("s1", { home });
  const how: Loading["how"][] = [];
  const transport = {
    hasOwnFolder,
    load: async (asked: Loading) => {
      how.push(asked.how);
      if (asked.how === "resume" && isUnknown) throw UNKNOWN;
    },
  };
  await loadOne(server, { serverId: "s1", ...record }, transport, isNew);
  return how;
}

/** The runtime's lock in the folder of a loaded session, with the PID that `serverRecord` has. */
const LOCK = "inuse.4711.lock";

it.each<[string, Case, Loading["how"][]]>([
  ["creates a session that never had a turn", {}, ["create"]],
  ["resumes a session with a history", { record: { turns: 1 }, folder: ["events.jsonl"] }, ["resume"]],
  ["resumes a session that never had a turn while a client has it open", { folder: [LOCK] }, ["resume"]],
  ["resumes a session that only the server's memory has", { record: { turns: 1 }, folder: [LOCK] }, ["resume"]],
  [
    "creates a session that never had a turn when its last client leaves it just before it is resumed",
    { folder: [LOCK], isUnknown: true },
    ["resume", "create"],
  ],
  ["asks the server about a session in a folder that a client chose", { hasOwnFolder: true }, ["resume"]],
  [
    "creates a session in a folder that a client chose when the server does not find it",
    { hasOwnFolder: true, isUnknown: true },
    ["resume", "create"],
  ],
  ["creates a new session in a folder that a client chose", { hasOwnFolder: true, isNew: true }, ["create"]],
])("load %s", async (_, given, how) => {
  expect(await loading(given)).toEqual(how);
});

it("a load that fails replaces the stamp that another process wrote at the same time", async () => {
  const home = join(await temporaryRoot(), "servers", "s1", "home");
  mkdirSync(home, { recursive: true });
  const server = serverRecord("s1", { home });
  let others: string | null = null;
  const transport = {
    load: async () => {
      others = noteOpened(server, "one");
      return await Promise.reject(new Error("The client has gone."));
    },
  };
  await expect(loadOne(server, { serverId: "s1" }, transport)).rejects.toThrow("The client has gone.");
  expect(others).not.toBeNull();
  expect(stampOf(server, "one")).not.toBe(others);
});

it.each<[string, Case, object]>([
  ["when it had turns and its history is gone", { record: { turns: 2 } }, { code: "FLEET_SESSION_LOST" }],
  [
    "when it had turns and the server does not find it",
    { record: { turns: 2 }, folder: ["events.jsonl"], isUnknown: true },
    UNKNOWN,
  ],
  [
    "when it had turns in a folder that a client chose and the server does not find it",
    { record: { turns: 2 }, hasOwnFolder: true, isUnknown: true },
    UNKNOWN,
  ],
  ["when its record names another server", { record: { serverId: "s2" } }, { code: "FLEET_SESSION_MOVED" }],
])("load never creates a session again %s", async (_, given, error) => {
  await expect(loading(given)).rejects.toMatchObject(error);
});
