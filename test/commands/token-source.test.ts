import { existsSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { RecordedSource } from "../../src/base/server.js";
import { openStore } from "../../src/store/store.js";
import { TestFleet } from "../fixtures/commands/cli.js";
import { memoryHas } from "../fixtures/processes.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";

const problem = redisProblem();
const GIVEN = "gho_canaryOfAlice";
const OF_SERVE = "gho_canaryOfServe";

/** Some tests forge server records with a valid signature, as another host of the fleet could write them to Redis. */
describe.skipIf(problem !== undefined)("the source of a server's GitHub token", () => {
  let redis: RedisServer;
  let fleet: TestFleet;

  beforeAll(async () => {
    redis = await RedisServer.start();
    const store = redis.url("f");
    fleet = new TestFleet({ COPILOTFLEET_STORE: store, COPILOTFLEET_HOST_NAME: "h1", GIVEN, OF_SERVE });
  });
  afterAll(async () => {
    await fleet.end();
    await redis.end();
  });

  async function rewrite(token: object): Promise<void> {
    const store = openStore(redis.url("f"), fleet.root, { host: "h1" });
    const { id } = await fleet.record("alice");
    await store.registry.update(({ servers }) => {
      const server = servers[id];
      if (server !== undefined) server.token = token as RecordedSource;
    });
    await store.close();
  }

  const has = async (user: string, token: string) => memoryHas(await fleet.pidOf(user), token);

  it("a GitHub token source that spawn was given stays in the state folder, and a restart uses it", async () => {
    await fleet.spawn("alice");
    await fleet.ok(["stop", "alice"]);
    await fleet.ok(["spawn", "--user", "alice", "--token-env", "GIVEN"]);
    expect((await fleet.record("alice")).token).toEqual({ from: "env" });
    await fleet.ok(["restart", "alice"]);
    expect(await has("alice", GIVEN)).toBe(true);
  });

  it.each<[string, (folder: string) => object]>([
    ["program", (folder) => ({ from: "command", command: `touch ${join(folder, "ran")}; echo gho_x` })],
    ["path", () => ({ from: "file", path: "/proc/self/environ" })],
  ])("restart refuses a forged record that names a %s as the source of the GitHub token", async (_, forged) => {
    await rewrite(forged(fleet.folder));
    const refusal = await fleet.refusal(3, ["restart", "alice"]);
    expect(refusal).toMatchObject({ code: "FLEET_TOKEN_UNAVAILABLE" });
    expect(refusal.message).toContain("this host has no note of it");
    expect(existsSync(join(fleet.folder, "ran"))).toBe(false);
    await rewrite({ from: "env" });
    await fleet.ok(["spawn", "--user", "alice"]);
    expect(await has("alice", GIVEN)).toBe(true);
  });

  it("restart ignores the variable that a forged record names, and uses the one that spawn was given", async () => {
    await rewrite({ from: "env", name: "OF_SERVE" });
    await fleet.ok(["restart", "alice"]);
    expect(await has("alice", GIVEN)).toBe(true);
  });
});
