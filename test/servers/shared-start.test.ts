import { mkdtemp, realpath } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { NEVER } from "../../src/base/clock.js";
import { openParts } from "../../src/fleet/parts.js";
import { eventually } from "../fixtures/eventually.js";
import { testPorts } from "../fixtures/fleets/ports.js";
import { removeFolder } from "../fixtures/remove-folder.js";

async function openPool() {
  const folder = await realpath(await mkdtemp(join(tmpdir(), "copilotfleet-start-")));
  const env = { PATH: process.env.PATH, HOME: process.env.HOME, COPILOT_OFFLINE: "true", COPILOTFLEET_HOME: folder };
  const parts = openParts({ env, cwd: folder, config: { ports: testPorts(), provider: { type: "echo" } } });
  onTestFinished(async () => {
    const ids = (await parts.pool.all()).map(({ id }) => id);
    await parts.pool.stopAll(ids, { drainTimeoutMs: 0, force: true, signal: NEVER });
    await parts.close();
    await removeFolder(folder);
  });
  return parts.pool;
}

it("a shared start continues for the other callers when the caller that began it gives up", async () => {
  const pool = await openPool();
  const impatient = new AbortController();
  const first = pool.serverOf("ann", { signal: impatient.signal, sharedUntil: NEVER });
  const second = pool.serverOf("ann", { signal: NEVER, sharedUntil: NEVER });
  await eventually("the start", async () => (await pool.all()).length > 0);
  impatient.abort(new Error("has gone"));
  await expect(first).rejects.toThrow("has gone");
  expect((await second).server).toMatchObject({ user: "ann", state: "ready" });
});

it("a caller of a shared start gets FLEET_SERVER_START_TIMEOUT when its own time is up, and the start continues", async () => {
  const pool = await openPool();
  const hasty = pool.serverOf("ann", { signal: AbortSignal.timeout(1), sharedUntil: NEVER });
  await expect(hasty).rejects.toMatchObject({ code: "FLEET_SERVER_START_TIMEOUT" });
  expect((await pool.serverOf("ann", { signal: NEVER, sharedUntil: NEVER })).server).toMatchObject({ state: "ready" });
});
