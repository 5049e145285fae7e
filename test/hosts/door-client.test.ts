import { afterAll, beforeAll, describe } from "vitest";
import { describeClient, OPEN_TO_CLIENTS } from "../door/client-suite.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { HostDoors } from "./door-harness.js";

const problem = redisProblem();
if (problem !== undefined) console.warn(`clients at another host's front door are not tested: ${problem}`);

/** A client must be able to do the same at the front door of another host as at its user's own server. */
const env = {
  COPILOTFLEET_SESSION_APPROVE: OPEN_TO_CLIENTS.approve,
  COPILOTFLEET_SESSION_HOST: OPEN_TO_CLIENTS.host,
};

describe.skipIf(problem !== undefined)("through the front door of another host", () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(() => redis.end());

  for (const storage of ["local", "shared"] as const) {
    const open = async () => {
      const doors = await HostDoors.open({ redis, storage, env });
      await doors.place("alice", "h2");
      return {
        connect: async () => await doors.client("alice", "h1"),
        settings: {},
        [Symbol.asyncDispose]: async () => await doors[Symbol.asyncDispose](),
      };
    };
    // The same code relays messages with both kinds of storage, so shared storage runs only a part of the suite.
    describeClient(`through-the-wrong-door-with-${storage}-storage`, open, { isPassedOn: storage === "shared" });
  }
});
