import { mkdtemp, realpath } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it, vi } from "vitest";
import { Fleet } from "../../src/fleet/fleet.js";
import { SessionRecords } from "../../src/store/file/records/session-records.js";
import { testPorts } from "../fixtures/fleets/ports.js";
import { removeFolder } from "../fixtures/remove-folder.js";
import { unused } from "../fixtures/sessions/unused.js";

const read = vi.spyOn(SessionRecords.prototype, "read");

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
