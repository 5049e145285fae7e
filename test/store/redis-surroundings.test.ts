import { describe, expect, it } from "vitest";
import { judge, type Surroundings } from "../../src/store/redis/connection.js";
import { Demotion, explain, Interruption } from "../../src/store/redis/failures.js";

const WHERE = "redis.example:6379";

function surroundings(facts: Record<string, string>, over: Partial<Surroundings> = {}): Surroundings {
  const all = {
    redis_version: "8.0.2",
    loading: "0",
    maxmemory_policy: "noeviction",
    role: "master",
    connected_slaves: "0",
    cluster_enabled: "0",
    ...facts,
  };
  const info = Object.entries(all).map(([name, value]) => `${name}:${value}`);
  return { info: ["# Server", ...info, ""].join("\r\n"), save: "", appendOnly: "yes", ...over };
}

describe("the check of a Redis server's settings", () => {
  it("the check accepts a Redis of version 6.2 or later that has persistence or hides its settings", () => {
    expect(judge(surroundings({}), WHERE)).toEqual([]);
    expect(judge(surroundings({}, { save: "3600 1", appendOnly: "no" }), WHERE)).toEqual([]);
    expect(judge(surroundings({}, { save: null, appendOnly: null }), WHERE)).toEqual([]);
    expect(judge(surroundings({ redis_version: "6.2.0" }), WHERE)).toEqual([]);
    expect(judge(surroundings({ redis_version: "10.0.1" }), WHERE)).toEqual([]);
  });

  it.each([
    ["a Redis that is a replica", surroundings({ role: "slave" }), "is a replica"],
    ["a Redis that is a primary with replicas", surroundings({ connected_slaves: "2" }), "has replicas"],
    ["a Redis that is part of a cluster", surroundings({ cluster_enabled: "1" }), "part of a cluster"],
    ["a Redis without persistence", surroundings({}, { appendOnly: "no" }), "keeps nothing on disk"],
    ["a Redis that forbids the command INFO", surroundings({}, { info: null }), "INFO is forbidden"],
  ])("the check warns about %s", (_, given, words) => {
    expect(judge(given, WHERE)).toEqual([expect.stringContaining(words)]);
    expect(judge(given, WHERE)[0]).toContain(WHERE);
  });

  it.each([
    ["5.0.14", "is version 5.0.14"],
    ["6.0.20", "6.2 or later"],
  ])("the check refuses Redis version %s as too old", (version, words) => {
    const refusal = expect.objectContaining({ code: "FLEET_STORE_UNUSABLE", message: expect.stringContaining(words) });
    expect(() => judge(surroundings({ redis_version: version }), WHERE)).toThrow(refusal);
  });

  it.each(["allkeys-lru", "allkeys-random", "volatile-lru", "volatile-ttl"])(
    "the check refuses a Redis that may evict records under the policy %s",
    (policy) => {
      const refusal = expect.objectContaining({
        code: "FLEET_STORE_UNUSABLE",
        suggestions: expect.arrayContaining([
          "redis-cli -h redis.example -p 6379 CONFIG SET maxmemory-policy noeviction",
        ]),
      });
      expect(() => judge(surroundings({ maxmemory_policy: policy }), WHERE)).toThrow(refusal);
    },
  );

  it("the check treats a Redis that is still loading its data as an interruption", () => {
    expect(() => judge(surroundings({ loading: "1" }), WHERE)).toThrow(Interruption);
  });
});

describe("the explanation of a Redis error", () => {
  const reply = (message: string) =>
    Object.assign(new Error(message), { name: "ReplyError", command: { args: ["x"] } });

  it.each([
    [
      "OOM command not allowed when used memory > 'maxmemory'. script: abc, on @user_script:3.",
      "FLEET_STATE_UNWRITABLE",
    ],
    ["ERR Error running script: @user_script: 3: -OOM command not allowed when used memory", "FLEET_STATE_UNWRITABLE"],
    ["MISCONF Redis is configured to save RDB snapshots, but", "FLEET_STATE_UNWRITABLE"],
    ["NOREPLICAS Not enough good replicas to write.", "FLEET_STATE_UNWRITABLE"],
    ["WRONGPASS invalid username-password pair or user is disabled.", "FLEET_STORE_UNUSABLE"],
    ["NOAUTH Authentication required.", "FLEET_STORE_UNUSABLE"],
    ["NOPERM User fleet has no permissions to run the 'evalsha' command", "FLEET_STORE_UNUSABLE"],
    ["DENIED Redis is running in protected mode", "FLEET_STORE_UNUSABLE"],
    ["MOVED 3999 10.0.0.2:6381", "FLEET_STORE_UNUSABLE"],
    ["CLUSTERDOWN The cluster is down", "FLEET_STORE_UNUSABLE"],
    ["WRONGTYPE Operation against a key holding the wrong kind of value", "FLEET_STATE_CORRUPT"],
    ["ERR something else", "FLEET_INTERNAL"],
  ])("explain maps the Redis reply “%s” to %s", (message, code) => {
    const error = explain(reply(message), WHERE);
    expect(error).toMatchObject({ code, cause: expect.any(Error) });
    // ioredis attaches the failed command to its errors, and the command's arguments may include a password.
    expect(Object.keys(Object(error.cause))).not.toContain("command");
  });

  it.each([
    "READONLY You can't write against a read only replica.",
    "ERR Error running script: @user_script: 3: -READONLY You can't write against a read only replica.",
  ])(
    "explain treats the Redis reply “%s” as an interruption that becomes FLEET_STATE_UNWRITABLE if retries fail",
    (message) => {
      const error = explain(reply(message), WHERE);
      if (!(error instanceof Demotion)) throw error;
      expect(error.refusal).toMatchObject({ code: "FLEET_STATE_UNWRITABLE", cause: expect.any(Error) });
      expect(Object.keys(Object(error.refusal.cause))).not.toContain("command");
    },
  );

  it.each([
    "LOADING Redis is loading the dataset in memory",
    "BUSY Redis is busy running a script",
    "ERR max number of clients reached",
  ])("explain treats the Redis reply “%s” as an interruption, so that the store tries again", (message) => {
    expect(explain(reply(message), WHERE)).toBeInstanceOf(Interruption);
    expect(explain(reply(message), WHERE)).toMatchObject({ nobody: false });
  });

  it.each([
    ["ECONNREFUSED", true],
    ["ENOTFOUND", true],
    ["ECONNRESET", false],
    ["EPIPE", false],
  ])("explain maps the connection error %s to an interruption whose field nobody is %s", (code, nobody) => {
    expect(explain(Object.assign(new Error(`connect ${code}`), { code }), WHERE)).toMatchObject({ nobody });
    expect(explain(new Error("Connection is closed."), WHERE)).toMatchObject({ nobody: false });
  });
});
