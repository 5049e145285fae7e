import { mkdirSync, writeFileSync } from "node:fs";
import { mkdtemp, realpath } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, expect, it, vi } from "vitest";
import type { ServerRecord } from "../../src/base/server.js";
import type { SessionRecord } from "../../src/base/session.js";
import { Fleet } from "../../src/fleet/fleet.js";
import type { HostDirectory } from "../../src/servers/directory.js";
import { noteOpened, stampOf } from "../../src/sessions/memory/open-notes.js";
import type { SessionsContext } from "../../src/sessions/problems.js";
import { type Loading, load, type Transport } from "../../src/sessions/use/load.js";
import { SessionTable } from "../../src/store/sessions.js";
import { testPorts } from "../fixtures/fleets/ports.js";
import { removeFolder } from "../fixtures/remove-folder.js";
import { unused } from "../fixtures/sessions/unused.js";
import { serverRecord, sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const read = vi.spyOn(SessionTable.prototype, "read");

/** The ids of the sessions whose records were read since the last `read.mockClear()`, in order. */
const reads = () => read.mock.calls.map(([id]) => id);

async function openFleet(folder: string, isolation: "per-user" | "shared") {
  const env = { PATH: process.env.PATH, HOME: process.env.HOME, COPILOT_OFFLINE: "true" };
  const config = { ports: testPorts(), isolation, provider: { type: "echo" as const } };
  return await Fleet.open({ env: { ...env, COPILOTFLEET_HOME: join(folder, isolation) }, cwd: folder, config });
}

let folder: string;
const fleets: Fleet[] = [];
beforeAll(async () => {
  folder = await realpath(await mkdtemp(join(tmpdir(), "copilotfleet-use-")));
});
afterAll(async () => {
  for (const fleet of fleets) {
    const servers = await fleet.servers.list();
    await fleet.servers.stop(
      servers.map(({ id }) => id),
      { force: true },
    );
    await fleet.close();
  }
  await removeFolder(folder);
});

/** A fleet with a session `id` that nobody has open. */
async function fleetWith(id: string, isolation: "per-user" | "shared", members?: readonly string[]): Promise<Fleet> {
  const fleet = await openFleet(folder, isolation);
  fleets.push(fleet);
  const session = await fleet.sessions.create({ user: "ann", sessionId: id, ...(members ? { members } : {}) });
  await fleet.sessions.leave(session);
  await fleet.sessions.use(id, "first", { user: "ann" });
  return fleet;
}

it.each<[string, "per-user" | "shared", readonly string[] | undefined]>([
  ["private", "per-user", undefined],
  ["collaborative", "per-user", ["ben"]],
  ["private", "shared", undefined],
  ["collaborative", "shared", ["ben"]],
])("a send reads the record of a %s session exactly twice (isolation %s)", async (_, isolation, members) => {
  const id = unused(members === undefined ? "alone" : "team");
  const fleet = await fleetWith(id, isolation, members);
  read.mockClear();
  const { text } = await fleet.sessions.use(id, "second", { user: "ann" });
  expect(text).toBe("[turn 2] second");
  // The first read finds the session. The second read is under the use marker, on purpose.
  expect(reads()).toEqual([id, id]);
});

it("a turn does not read the session's record if this process has the session open on the user's own server", async () => {
  const id = unused("open");
  const fleet = await fleetWith(id, "per-user");
  const session = await fleet.sessions.resume(id, { user: "ann" });
  read.mockClear();
  await fleet.sessions.send(session, "second");
  expect(reads()).toEqual([]);
  await fleet.sessions.leave(session);
});

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
