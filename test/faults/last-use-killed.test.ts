import { expect, it } from "vitest";
import { openStore } from "../../src/store/store.js";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import { faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { serve } from "../fixtures/fleets/serve.js";

const DAY_MS = 24 * 60 * 60_000;

it("gc keeps a session whose last turn was not recorded because serve was killed right after that turn", async () => {
  const fleet = await faultFleet();
  const serving = await serve(fleet);
  const { door } = await serving.logged("serving");
  const { token } = await fleet.json<{ token: string }>(["token", "issue", "--user", "ann"]);
  const client = await RawClient.as(String(door), token);
  await client.requestOk("session.create", { sessionId: "notes" });
  await client.turnOk("notes", "one");
  const { sessions } = openStore("file", fleet.root);
  await eventually("the record of the first turn", async () => (await sessions.read("notes"))?.turns === 1);
  await client.turnOk("notes", "two");
  serving.kill("SIGKILL");
  await serving.done;
  // Change the recorded time of last use to an old time, so that gc has to find the real time in the history.
  await sessions.update("notes", (draft) => {
    draft.lastUsedAt = new Date(Date.now() - DAY_MS).toISOString();
  });
  expect(await fleet.json(["gc", "--ttl", "1h"])).toMatchObject({ deleted: [] });
  expect(await fleet.json(["send", "notes", "three", "--user", "ann"])).toMatchObject({ reply: "[turn 3] three" });
});
