import { expect, it } from "vitest";
import type { DoorEvent } from "../../src/door/state/report.js";
import { doorListeners } from "../../src/serve/report/probes.js";
import { DoorFleet } from "../door/harness.js";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";

/** The codes under which the metrics count the errors among these events. */
function counted(events: readonly DoorEvent[]): string[] {
  const codes: string[] = [];
  const metrics = { failed: (code: string) => codes.push(code) };
  const context = { config: {}, metrics, log: () => undefined } as unknown as Parameters<typeof doorListeners>[0];
  const { onEvent } = doorListeners(context);
  for (const event of events) onEvent?.(event);
  return codes;
}

it("a failure of the front door is counted under its own error code, and as FLEET_INTERNAL only if it is a bug", async () => {
  expect(counted([{ event: "failed", address: "", detail: "TypeError: x is undefined" }])).toEqual(["FLEET_INTERNAL"]);
  await using at = await DoorFleet.open();
  await at.fleet.pool.drain();
  await expect(at.client("ann")).rejects.toThrow();
  await eventually("the report", () => at.events.some(({ event }) => event === "failed"));
  expect(counted(at.events)).toEqual(["FLEET_POOL_DRAINING"]);
});

it("a refusal by a limit is counted under the name of the limit, and not as an error", async () => {
  const limits: string[] = [];
  const levels: string[] = [];
  const metrics = { failed: (code: string) => limits.push(code), limited: (limit: string) => limits.push(limit) };
  const log = (level: string) => levels.push(level);
  const context = { config: {}, metrics, log } as unknown as Parameters<typeof doorListeners>[0];
  await using at = await DoorFleet.open({ config: { limits: { default: { connections: 1 } } } });
  const { onEvent } = doorListeners(context);
  await at.client("ann");
  await expect(at.client("ann")).rejects.toThrow("A user may have 1 connection to");
  for (const event of at.events.filter(({ event }) => event !== "connected" && event !== "closed")) onEvent?.(event);
  expect({ limits, levels }).toEqual({ limits: ["connections"], levels: ["warn"] });
});

it("an accepted sign-on at the front door is counted as accepted, and a refused sign-on as refused", async () => {
  const counted: string[] = [];
  const metrics = { signedOn: (...labels: string[]) => counted.push(labels.slice(0, 2).join(" ")) };
  const context = { config: { serve: {} }, metrics, log: () => undefined } as unknown;
  await using at = await DoorFleet.open();
  const listen = { host: "127.0.0.1", port: 0 };
  const listeners = doorListeners(context as Parameters<typeof doorListeners>[0]);
  await using door = await at.fleet.doors.open({ listen, ...listeners });
  const { token } = await at.fleet.tokens.issue("ann");
  await RawClient.as(door.url, token);
  await expect(RawClient.as(door.url, `${token}x`)).rejects.toThrow("AUTHENTICATION_FAILED");
  expect(counted).toEqual(["token accepted", "token refused"]);
});
