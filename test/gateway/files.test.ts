import { expect, it } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { filesUsed } from "../fixtures/files-used.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

it("a turn through the front door runs the code of at most 52 source files", async () => {
  await using at = await DoorFleet.open();
  const client = await RawClient.as(at.url, await at.token("ann"));
  await client.requestOk("session.create", { sessionId: "s" });
  await client.turnOk("s", "first");
  await eventually("the end of the turn", () => at.door.turns === 0);
  const filesOf = async (prompt: string) =>
    await filesUsed(async () => {
      await client.turnOk("s", prompt);
      await eventually("the end of the turn", () => at.door.turns === 0);
    });
  // Count only the files that all three turns use, because the door's regular work may run during one of the turns.
  const [second = [], third = [], fourth = []] = [
    await filesOf("second"),
    await filesOf("third"),
    await filesOf("fourth"),
  ];
  const files = second.filter((file) => third.includes(file) && fourth.includes(file));
  expect(files).toContain("gateway/turns/prompt-queue.ts");
  expect(files.length, files.join("\n")).toBeLessThanOrEqual(52);
});
