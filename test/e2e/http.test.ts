import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { testFleet } from "../fixtures/commands/cli.js";
import { eventually } from "../fixtures/eventually.js";
import { type Serving, serve, startServe } from "../fixtures/fleets/serve.js";
import { startHeldModel } from "../fixtures/models/held-model.js";
import { unused } from "../fixtures/sessions/unused.js";
import { freePort } from "../fixtures/store/redis-server.js";
import { ask } from "../http/harness.js";

const model = await startHeldModel();
const fleet = testFleet({ ...model.env });

/** The URL of the HTTP API of this `serve`. */
async function urlOf(serving: Serving): Promise<string> {
  return String((await serving.logged("serving")).http);
}

async function tokenOf(user: string): Promise<string> {
  return (await fleet.json<{ token: string }>(["token", "issue", "--user", user])).token;
}

/** Starts and stops `serve`, and returns the modules that it loaded. A hook writes their names when `serve` exits. */
async function modulesOf(args: readonly string[]): Promise<string[]> {
  const [hook, list] = [join(fleet.folder, "modules.cjs"), join(fleet.folder, unused("modules"))];
  const write = `require("fs").writeFileSync(${JSON.stringify(list)}, Object.keys(require.cache).join("\\n"))`;
  writeFileSync(hook, `process.on("exit", () => ${write});`);
  const serving = await serve(fleet, { args, env: { NODE_OPTIONS: `--require ${hook}` } });
  expect((await serving.end()).code).toBe(0);
  return readFileSync(list, "utf8").split("\n");
}

describe("serve with an HTTP API", () => {
  it("serve prints its HTTP API's address, and on SIGTERM refuses new turns and finishes running turns", async () => {
    const serving = await serve(fleet, { args: ["--http", "127.0.0.1:0"] });
    const url = await urlOf(serving);
    const token = await tokenOf("alice");
    const { id } = (await ask(url, "POST", "/v1/sessions", { token })).json.session;
    const path = `/v1/sessions/${id}/turns`;
    expect((await ask(url, "POST", path, { token, body: { prompt: "hello" } })).json.reply).toBe("[turn 1] hello");
    const last = ask(url, "POST", path, { token, body: { prompt: "!hold the last one" } });
    await eventually("the model", () => model.held() > 0);
    serving.kill("SIGTERM");
    await eventually("the drain", async () => (await ask(url, "GET", "/readyz")).status === 503);
    const refused = await ask(url, "POST", path, { token, body: { prompt: "too late" } });
    expect({ status: refused.status, retry: refused.headers["retry-after"] }).toEqual({ status: 503, retry: "1" });
    model.release();
    expect((await last).json.reply).toBe("[turn 2] the last one");
    const { code, stdout } = await serving.done;
    expect(code).toBe(0);
    expect(stdout).toContain(` HTTP API: ${url}. `);
    expect(await fleet.send("alice", id, "over the command")).toBe("[turn 3] over the command");
  });

  it("serve answers probes at serve.http and serve.metrics, but metrics only at serve.metrics", async () => {
    const serving = await serve(fleet, { args: ["--http", "127.0.0.1:0"] });
    const url = await urlOf(serving);
    for (const path of ["/healthz", "/readyz"]) {
      expect((await ask(url, "GET", path)).json).toEqual({ ok: true, reasons: [] });
      expect((await ask(`http://${serving.address}`, "GET", path)).json).toEqual({ ok: true, reasons: [] });
    }
    expect((await ask(url, "GET", "/metrics")).status).toBe(404);
    await ask(url, "GET", "/v1/me");
    expect(await serving.metric("door_requests_total", { method: "GET /v1/me" })).toBe(1);
    await serving.end();
  });

  it("serve answers the HTTP API and metrics at one address if serve.http and serve.metrics both name it", async () => {
    const address = `127.0.0.1:${await freePort()}`;
    const serving = await serve(fleet, { args: ["--http", address, "--metrics", address] });
    expect(serving.address).toBe(address);
    expect((await serving.readyz()).ok).toBe(true);
    expect((await ask(`http://${address}`, "GET", "/metrics")).text).toContain("copilotfleet_ready 1");
    expect((await ask(`http://${address}`, "GET", "/v1/me")).status).toBe(401);
    expect((await serving.end()).code).toBe(0);
  });

  it("serve without TLS refuses an HTTP address that other machines can reach, without acquiring the host lock", async () => {
    const refused = await startServe(fleet, { args: ["--http", "0.0.0.0:0"] }).done;
    expect(refused.code).toBe(3);
    expect(refused.stderr).toContain("serve.http");
    expect((await fleet.registry()).supervisors ?? []).toEqual([]);
  });

  it("serve loads the packages of the HTTP API only if serve.http is set", async () => {
    const isOfApi = (path: string) => path.includes("/node_modules/hono/") || path.includes("/@hono/");
    expect((await modulesOf(["--http", "127.0.0.1:0"])).some(isOfApi)).toBe(true);
    expect((await modulesOf([])).filter(isOfApi)).toEqual([]);
  });
});
