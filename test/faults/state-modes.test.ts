import { statSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { serverIdOf } from "../../src/base/ids.js";
import { eventually } from "../fixtures/eventually.js";
import { serve } from "../fixtures/fleets/serve.js";
import { userFleet } from "../fixtures/fleets/user-fleet.js";
import { startToolModel } from "../fixtures/models/tool-model.js";

const ROOT = process.getuid?.() === 0;

/**
 * Changes of modes with which an agent stops the fleet or opens it to other accounts, each with the path and its right
 * mode.
 */
const ATTACKS = [
  { change: "777", of: "", right: 0o700 },
  { change: "000", of: "", right: 0o700 },
  { change: "777", of: "..", right: 0o755 },
  { change: "000", of: "servers/BOB/home", right: 0o700 },
  { change: "646", of: "servers/BOB/connection-token", right: 0o640 },
] as const;

it.skipIf(!ROOT)(
  "when an agent under landlock changes modes of the state folder, serve restores and logs them, and others work on",
  async () => {
    await using model = await startToolModel();
    const { fleet, under } = await userFleet({
      ...model.env,
      COPILOTFLEET_SANDBOX_MODE: "landlock",
      COPILOTFLEET_HEALTH_INTERVAL: "1s",
    });
    for (const user of ["alice", "bob"]) await fleet.ok(["create", "--user", user, "--id", `of-${user}`], { under });
    const serving = await serve(fleet, { under });
    for (const { change, of, right } of ATTACKS) {
      const path = join(fleet.root, of.replace("BOB", serverIdOf("bob")));
      const seen = serving.log().length;
      const call = { command: `chmod ${change} '${path}'`, description: "works" };
      await fleet.run(["send", "of-alice", `!tool bash ${JSON.stringify(call)}`, "--user", "alice"], { under });
      const was = change.padStart(4, "0");
      expect(await serving.logged(/^the mode of .* is restored$/, { from: seen })).toMatchObject({ path, was });
      await eventually("an answer to bob", async () => {
        const { code } = await fleet.run(["send", "of-bob", "hello", "--user", "bob"], { under });
        return code === 0;
      });
      expect(statSync(path).mode & 0o7777, path).toBe(right);
    }
  },
);
