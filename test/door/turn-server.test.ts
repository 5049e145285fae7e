import { expect, it } from "vitest";
import { NEVER, pause } from "../../src/base/clock.js";
import { FleetError } from "../../src/base/errors.js";
import type { ServerLink } from "../../src/door/state/links.js";
import { Turn } from "../../src/door/state/turn.js";
import { isIdle } from "../../src/door/turns/turn-server.js";
import { ownIdentity } from "../../src/runtime/process/process-table.js";
import { type RpcClient, RpcError } from "../../src/runtime/wire/rpc-client.js";
import { sessionNotFound } from "../../src/sessions/problems.js";
import type { SessionUse } from "../../src/sessions/use/use-session.js";
import { serverRecord, sessionRecord } from "../fixtures/store/store-records.js";

const DEAD = { ...ownIdentity(), startTicks: "1" };

/** A turn whose server runs in this process, or in a process that has ended. */
function turnOn(process = ownIdentity()): Turn {
  const turn = new Turn(sessionRecord("s"));
  turn.use = { server: serverRecord("a", { process }) } as SessionUse;
  return turn;
}

type Request = RpcClient["request"];

/** A router to a server that answers each request as `request` does. */
function answering(request: (...given: Parameters<Request>) => Promise<unknown>) {
  return { linkHere: async () => await Promise.resolve({ upstream: { request } } as unknown as ServerLink) };
}

function failing(error: unknown) {
  return { linkHere: async () => await Promise.reject(error) };
}

it.each([
  ["is in a turn", true, false],
  ["is idle", false, true],
])("isIdle relies on the server's answer that the session %s", async (_, hasActiveWork, idle) => {
  expect(
    await isIdle(
      answering(async () => await Promise.resolve({ hasActiveWork })),
      turnOn(),
      1_000,
    ),
  ).toBe(idle);
});

it("a turn does not count as over when the store does not answer, because the server may still run the turn", async () => {
  const away = new FleetError("FLEET_STORE_UNAVAILABLE", "The store does not answer.");
  expect(await isIdle(failing(away), turnOn(), 1_000)).toBe(false);
});

it("a turn does not count as over when its server does not answer in time", async () => {
  const silent = answering(async (_method, _params, _onResult, signal = NEVER) => await pause(60_000, signal));
  expect(await isIdle(silent, turnOn(), 10)).toBe(false);
});

it("a turn counts as over when the server that ran it has ended, whatever else fails", async () => {
  const away = new FleetError("FLEET_STORE_UNAVAILABLE", "The store does not answer.");
  expect(await isIdle(failing(away), turnOn(DEAD), 1_000)).toBe(true);
});

it.each([
  ["its server does not have the session in memory", new RpcError("Session not found", -32603)],
  ["its session was deleted", sessionNotFound("s")],
  ["another host has its session", new FleetError("FLEET_SESSION_MOVED", "It moved.")],
])("a turn counts as over when %s", async (_, error) => {
  expect(await isIdle(failing(error), turnOn(), 1_000)).toBe(true);
});
