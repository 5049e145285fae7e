import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { DoorFleet } from "../door/harness.js";
import { memoryHas } from "../fixtures/processes.js";

it("a server's GitHub token and connection token do not appear in its own environment or in that of its tools", async () => {
  const token = "gho_canaryOfTheTool4f81";
  await using at = await DoorFleet.open({
    // Without these URLs, a runtime with a token would contact GitHub.
    env: { TOKEN: token, COPILOT_API_URL: "http://127.0.0.1:9", COPILOT_DEBUG_GITHUB_API_URL: "http://127.0.0.1:9" },
    config: { auth: { githubToken: { env: "TOKEN" } }, session: { approve: "all" } },
  });
  const session = await at.fleet.sessions.create({ user: "alice" });
  const { text } = await at.fleet.sessions.send(session, '!tool bash {"command":"env","description":"shows it"}');
  const { pid } = await at.serverOf("alice");
  const ofServer = readFileSync(`/proc/${pid}/environ`, "utf8").split("\0");
  expect(ofServer).toContain("COPILOT_OFFLINE=true");
  for (const shown of [text, ofServer.join("\n")]) {
    expect(shown).not.toContain(token);
    expect(shown).not.toContain("COPILOT_CONNECTION_TOKEN");
  }
  expect(text).not.toContain("LD_PRELOAD");
  expect(memoryHas(pid, token), "the server does not have the token").toBe(true);
  // The fleet needs these variables to find a tool's processes after their server has died.
  const kept = text.match(/^COPILOTFLEET_\w+/gm)?.sort();
  expect(kept).toEqual(["COPILOTFLEET_LAUNCH_ID", "COPILOTFLEET_OWNER"]);
});
