import { chmodSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { serverIdOf } from "../../src/base/ids.js";
import { homeOf } from "../../src/runtime/files/server-folder.js";
import { askProxy } from "../../src/sandbox/network/egress.js";
import { fleetAs } from "../fixtures/fleets/user-fleet.js";
import { startToolModel } from "../fixtures/models/tool-model.js";
import { killed } from "../fixtures/processes.js";
import { bwrapProblem } from "../fixtures/programs/bwrap.js";
import { networkProblem } from "../fixtures/programs/network.js";

async function webServer(): Promise<number> {
  const server = createServer((_, response) => void response.end("from outside\n"));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => void server.close());
  return (server.address() as AddressInfo).port;
}

it.skipIf(networkProblem !== undefined).each(
  (
    [
      { mode: "landlock", as: "an ordinary user" },
      { mode: "bwrap", as: "root" },
    ] as const
  ).filter(({ mode }) => (mode === "bwrap" ? bwrapProblem === undefined : process.getuid?.() === 0)),
)(
  "in sandbox mode $mode as $as, an agent's curl reaches only the allowed hosts, even after the proxy was killed",
  async ({ mode, as }) => {
    await using model = await startToolModel();
    const [allowed, other] = [await webServer(), await webServer()];
    const env = {
      ...model.env,
      COPILOTFLEET_SANDBOX_MODE: mode,
      COPILOTFLEET_SANDBOX_NETWORK: "allow-list",
      COPILOTFLEET_SANDBOX_ALLOW: `localhost:${allowed},127.0.0.1:${allowed},localhost:${other}`,
    };
    const { fleet, run } = await fleetAs(as, env);
    await fleet.ok(["create", "--user", "alice", "--id", "one"], run);
    const home = homeOf(fleet.root, serverIdOf("alice"));
    // The server's no_proxy names localhost. Without `--noproxy ''`, curl would bypass the proxy.
    const curl = (url: string) => `curl -sS --noproxy '' --max-time 20 ${url} 2>&1`;
    const script = [
      `{ ${curl(`http://localhost:${allowed}/`)}`,
      curl(`--proxytunnel http://localhost:${allowed}/`),
      curl(`http://localhost:${other}/`),
      curl(`--proxytunnel http://127.0.0.1:${other}/`),
      `curl -sS --noproxy '*' --max-time 20 http://127.0.0.1:${allowed}/ 2>&1; } > "$HOME/result"`,
    ];
    writeFileSync(join(home, "try.sh"), script.join("\n"));
    chmodSync(join(home, "try.sh"), 0o644);
    const attempt = async () => {
      const call = { command: `bash '${join(home, "try.sh")}'; true`, description: "works" };
      await fleet.ok(["send", "one", `!tool bash ${JSON.stringify(call)}`, "--user", "alice"], run);
      return readFileSync(join(home, "result"), "utf8").trim().split("\n");
    };
    const expected = [
      "from outside",
      "from outside",
      expect.stringContaining("localhost leads to a private or reserved address"),
      expect.stringContaining("403"),
      expect.stringMatching(/connect|refused/i),
    ];
    expect(await attempt()).toEqual(expected);
    const folder = join(fleet.root, "network");
    await killed((await askProxy(folder))?.pid ?? null);
    expect(await attempt()).toEqual(expected);
    const lines = readFileSync(join(folder, "egress.log"), "utf8").trim().split("\n");
    expect(lines.map((line) => JSON.parse(line))).toContainEqual(
      expect.objectContaining({ user: "alice", result: "blocked", host: "localhost", port: other }),
    );
    await killed((await askProxy(folder))?.pid ?? null);
    const { checks } = await fleet.json<{ checks: { name: string; level: string; detail: string }[] }>(["doctor"], run);
    expect(checks.find(({ name }) => name === "sandbox")).toMatchObject({
      level: "warning",
      detail: expect.stringContaining("the proxy of servers with an allow-list does not run"),
    });
  },
);
