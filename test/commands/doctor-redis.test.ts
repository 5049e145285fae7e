import { once } from "node:events";
import { type AddressInfo, createConnection, createServer, type Server } from "node:net";
import { Transform } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import type { DoctorResult } from "../../src/fleet/doctor/doctor.js";
import { TestFleet } from "../fixtures/commands/cli.js";
import { serve } from "../fixtures/fleets/serve.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";

const problem = redisProblem();
if (problem !== undefined) console.warn(`doctor on Redis is not tested: ${problem}`);

const NO_PASSWORD = expect.stringContaining("Redis asks for no password");

describe.skipIf(problem !== undefined)("doctor on Redis", () => {
  let redis: RedisServer;
  let fleet: TestFleet;

  beforeAll(async () => {
    redis = await RedisServer.start();
    fleet = new TestFleet({ COPILOTFLEET_STORE: redis.url("f") });
  });
  afterAll(async () => {
    await fleet.end();
    await redis.end();
  });

  async function storeCheck(url: string, env: NodeJS.ProcessEnv = {}) {
    const ran = await fleet.run(["doctor", "--quick", "--json"], { env: { ...env, COPILOTFLEET_STORE: url } });
    return { code: ran.code, check: ran.json<DoctorResult>().checks.find(({ name }) => name === "store") };
  }

  /** Starts a proxy that applies `change` to all answers of Redis. Resolves with the store URL through this proxy. */
  async function altered(change: (answer: Buffer) => Buffer | Promise<Buffer>): Promise<string> {
    const proxy: Server = createServer((client) => {
      const transform = (answer: Buffer, _: BufferEncoding, done: (error: null, changed: Buffer) => void) =>
        void Promise.resolve(change(answer)).then((changed) => done(null, changed));
      const server = createConnection(redis.port, "127.0.0.1");
      client.pipe(server).pipe(new Transform({ transform })).pipe(client);
      for (const socket of [client, server]) socket.on("error", () => undefined);
    }).listen(0, "127.0.0.1");
    onTestFinished(() => void proxy.close());
    await once(proxy, "listening");
    return redis.url("f").replace(String(redis.port), String((proxy.address() as AddressInfo).port));
  }

  it("doctor measures how long Redis takes to answer, and warns when Redis is slow", async () => {
    expect(await storeCheck(redis.url("f"))).toMatchObject({
      code: 0,
      check: { ok: true, detail: expect.stringMatching(/^redis: an answer takes \d+\.\d ms/) },
    });
    const slow = await altered(async (answer) => await delay(120, answer));
    expect(await storeCheck(slow)).toMatchObject({
      code: 0,
      check: {
        level: "warning",
        detail: expect.stringMatching(/^redis: an answer takes \d{3,}\.\d ms, which makes every command slow$/),
        fix: "redis-cli -u URL --latency",
      },
    });
  });

  it("doctor warns when the clock of Redis differs from the clock of this machine", async () => {
    // The proxy fakes a wrong clock: it adds 90 s to each number in an answer that looks like a current time in ms.
    const ahead = await altered((answer) =>
      Buffer.from(
        answer.toString("latin1").replace(/\b1\d{12}\b/g, (ms) => String(Number(ms) + 90_000)),
        "latin1",
      ),
    );
    expect(await storeCheck(ahead)).toMatchObject({
      code: 0,
      check: {
        level: "warning",
        detail: expect.stringMatching(
          /; its clock is (89|90|91) s ahead of this machine's, so tokens and sessions expire at wrong times$/,
        ),
        fix: expect.stringMatching(/^date {2}#/),
      },
    });
  });

  it("doctor warns of a Redis that keeps nothing on disk", async () => {
    const forgetful = await RedisServer.start(["--appendonly", "no", "--save", ""]);
    onTestFinished(() => forgetful.end());
    expect(await storeCheck(forgetful.url())).toMatchObject({
      code: 0,
      check: { level: "warning", items: [expect.stringContaining("keeps nothing on disk"), NO_PASSWORD] },
    });
  });

  it("doctor and serve warn of a Redis without a password, and not of one with a password", async () => {
    const own = await RedisServer.start();
    onTestFinished(() => own.end());
    const open = own.url("f");
    const warnings = async (env: NodeJS.ProcessEnv = {}) => {
      const serving = await serve(fleet, { env: { ...env, COPILOTFLEET_STORE: open } });
      await serving.end();
      return serving.log().filter(({ level, msg }) => level === "warn" && /password/.test(String(msg)));
    };
    expect(await storeCheck(open)).toMatchObject({
      code: 0,
      check: { ok: true, level: "warning", items: [NO_PASSWORD], fix: expect.stringContaining("requirepass") },
    });
    expect(await warnings()).toHaveLength(1);
    await own.client.config("SET", "requirepass", "secret");
    const password = { COPILOTFLEET_STORE_OPTIONS_PASSWORD: '{"env":"REDIS_PASSWORD"}', REDIS_PASSWORD: "secret" };
    expect(await storeCheck(open, password)).toMatchObject({
      code: 0,
      check: { level: "ok", items: [], fix: null },
    });
    expect(await warnings(password)).toEqual([]);
  });
});
