import { expect, it, onTestFinished } from "vitest";
import { Clients } from "../../src/servers/clients.js";
import { faultFleet } from "../fixtures/fleets/fault-fleet.js";

it("Clients connects to the new process of a replaced server while its connection to the old process is open", async () => {
  const fleet = await faultFleet();
  await fleet.json(["spawn", "--user", "u", "--count", "2"]);
  const [earlier, other] = [await fleet.record("u-1"), await fleet.record("u-2")];
  const clients = new Clients();
  onTestFinished(() => clients.closeAll());
  const signal = AbortSignal.timeout(60_000);
  const first = await clients.to(earlier, {}, signal);
  onTestFinished(() => first.destroy());
  expect(await clients.to(earlier, {}, signal)).toBe(first);
  // This record looks like that of a replaced server: the same id with another process on another port.
  const replaced = await clients.to({ ...other, id: earlier.id }, {}, signal);
  expect(replaced).not.toBe(first);
  await fleet.json(["stop", "--user", "u-1", "--force"]);
  await first.closed;
  // The end of the old connection does not end the new one.
  expect(await clients.to({ ...other, id: earlier.id }, {}, signal)).toBe(replaced);
  expect(await replaced.client.ping("still there")).toMatchObject({ message: expect.stringContaining("still there") });
});
