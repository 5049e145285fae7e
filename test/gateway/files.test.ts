import { expect, it } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { filesUsed } from "../fixtures/files-used.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

const PROMPTS = Array.from({ length: 12 }, (_, at) => `prompt ${at + 2}`);

it("a turn through the front door runs the code of at most 60 source files", async () => {
  await using at = await DoorFleet.open();
  const client = await RawClient.as(at.url, await at.token("ann"));
  await client.requestOk("session.create", { sessionId: "s" });
  await client.turnOk("s", "first");
  await eventually("the end of the turn", () => at.door.turns === 0);
  // Keep only the files that all turns use, because the door's periodic work may run during some of them.
  let files: string[] | undefined;
  for (const prompt of PROMPTS) {
    const used = await filesUsed(async () => {
      await client.turnOk("s", prompt);
      await eventually("the end of the turn", () => at.door.turns === 0);
    });
    files = files?.filter((file) => used.includes(file)) ?? used;
  }
  expect(files).toContain("gateway/turns/prompt-queue.ts");
  expect(files?.length, files?.join("\n")).toBeLessThanOrEqual(60);
});
