import { mkdtemp, realpath } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it, vi } from "vitest";
import { NEVER } from "../../src/base/clock.js";
import type { ServerRecord } from "../../src/base/server.js";
import { type FleetParts, openParts } from "../../src/fleet/parts.js";
import { HeldClaim } from "../../src/servers/server.js";
import { usedSessions } from "../../src/servers/use-markers.js";
import type { Transport } from "../../src/sessions/use/load.js";
import { useSession } from "../../src/sessions/use/use-session.js";
import { recordFor } from "../../src/sessions/view.js";
import { eventually } from "../fixtures/eventually.js";
import { testPorts } from "../fixtures/fleets/ports.js";
import { killed } from "../fixtures/processes.js";
import { removeFolder } from "../fixtures/remove-folder.js";
import { unused } from "../fixtures/sessions/unused.js";

let folder: string;
let parts: FleetParts;
beforeAll(async () => {
  folder = await realpath(await mkdtemp(join(tmpdir(), "copilotfleet-reopen-")));
  const env = { PATH: process.env.PATH, HOME: process.env.HOME, COPILOT_OFFLINE: "true", COPILOTFLEET_HOME: folder };
  parts = openParts({ env, cwd: folder, config: { ports: testPorts(), provider: { type: "echo" } } });
});
afterAll(async () => {
  const ids = (await parts.pool.all()).map(({ id }) => id);
  await parts.pool.stopAll(ids, { drainTimeoutMs: 0, force: true, signal: NEVER });
  await parts.close();
  await removeFolder(folder);
});

/** A promise, and the function that resolves it. */
function gate() {
  let open = (): void => undefined;
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { open, opened };
}

/** A turn of `ann` in a new session that nobody has open. */
async function turnIn(id: string) {
  await parts.open.create({ user: "ann", id, signal: NEVER });
  await parts.open.leave(id, { park: true });
  const record = await recordFor(parts, id, "ann");
  return await useSession(parts.sessions.context, { record, user: "ann", isTurn: true });
}

it("a session keeps its use marker while it is being loaded, even if the turn that began to load it has ended", async () => {
  const id = unused("loading");
  const use = await turnIn(id);
  const { server } = use;
  const [begun, answer] = [gate(), gate()];
  const slow: Transport<string> = {
    load: async () => {
      begun.open();
      await answer.opened;
      return "loaded";
    },
  };
  const loading = use.reopen(slow);
  await begun.opened;
  expect(await use.end()).toBeNull();
  expect(usedSessions(server)).toContain(id);
  answer.open();
  expect(await loading).toBe("loaded");
  expect(usedSessions(server)).not.toContain(id);
});

it("a running turn can load its session again on a draining server, because the drain waits for the turn", async () => {
  const use = await turnIn(unused("drained"));
  await parts.store.registry.update((registry) => {
    const server = registry.servers[use.server.id];
    if (server !== undefined) server.state = "draining";
  });
  try {
    const loaded: Transport<string> = { load: async ({ server }) => server.id };
    expect(await use.reopen(loaded)).toBe(use.server.id);
  } finally {
    await use.end();
    await parts.store.registry.update((registry) => {
      const server = registry.servers[use.server.id];
      if (server !== undefined) server.state = "ready";
    });
  }
});

it("when a running turn's server dies, the turn reloads its session before the next waiting turn can begin", async () => {
  const id = unused("first");
  const use = await turnIn(id);
  const { record, server } = use;
  let hasBegun = false;
  const waiting = useSession(parts.sessions.context, { record, user: "ann", isTurn: true }).then((next) => {
    hasBegun = true;
    return next;
  });
  await eventually("the lease of the turn that waits", async () => (await parts.store.leases.read(id)) !== null);
  await killed(server.process?.pid ?? null);
  const loaded: Transport<string> = { load: async (on) => on.server.id };
  expect(await use.reopen(loaded)).toBe(server.id);
  expect(use.lease).toBeUndefined();
  expect(hasBegun).toBe(false);
  expect(await use.end()).toBeNull();
  await (await waiting).end();
});

it("a turn begins at once on a server recorded as draining if the process that was draining it has died", async () => {
  const before = await turnIn(unused("left"));
  const { record, server } = before;
  await before.end();
  await parts.store.registry.update(({ servers }) => {
    const recorded = servers[server.id];
    if (recorded !== undefined) recorded.state = "draining";
  });
  const request = { record, user: "ann", isTurn: true, at: server, waitMs: 30_000 };
  const use = await useSession(parts.sessions.context, request);
  expect(use.server).toMatchObject({ id: server.id, process: server.process });
  await use.end();
});

it("a turn that waits for a drain to end has no use marker, because otherwise the drain would wait for the turn", async () => {
  const id = unused("patient");
  const before = await turnIn(id);
  const { record, server } = before;
  await before.end();
  using held = new HeldClaim();
  const change = async (state: ServerRecord["state"], claim: ServerRecord["claim"]) =>
    await parts.store.registry.update(({ servers }) => {
      const recorded = servers[server.id];
      if (recorded !== undefined) Object.assign(recorded, { state, claim });
    });
  await change("draining", held.claim);
  const { registry } = parts.store;
  const read = registry.read.bind(registry);
  const marked: boolean[] = [];
  const looks = vi.spyOn(registry, "read").mockImplementation(async () => {
    marked.push(usedSessions(server).has(id));
    return await read();
  });
  try {
    const turn = useSession(parts.sessions.context, { record, user: "ann", isTurn: true, at: server });
    await eventually("the turn has looked several times", () => marked.length >= 6);
    expect(marked).toEqual([true, ...marked.slice(1).fill(false)]);
    await change("ready", null);
    await (await turn).end();
    expect(marked.at(-1)).toBe(true);
  } finally {
    looks.mockRestore();
  }
});
