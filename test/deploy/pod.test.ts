import { execFile } from "node:child_process";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, it, onTestFinished } from "vitest";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import { DeployedPod } from "../fixtures/hosts/deployed-pod.js";
import { has, kubernetes } from "./render.js";

const [DOOR_PORT, HTTP_PORT, METRICS_PORT, UID] = [4300, 4380, 9464, 10_001];
const POSSIBLE = process.getuid?.() === 0 && ["unshare", "nsenter", "setpriv", "tini", "ip", "curl"].every(has);

it.skipIf(!POSSIBLE)(
  "the manifest's pod serves a conversation, and drains on SIGTERM in time (skipped without root, tini, ip or curl)",
  async () => {
    const folder = mkdtempSync(join(tmpdir(), "copilotfleet-pod-"));
    const { manifests } = kubernetes(
      { COPILOTFLEET_PROVIDER_TYPE: "echo", COPILOTFLEET_AUTH_GITHUB_TOKEN: '{"env":"TEAM_TOKEN"}' },
      { "ingress-host": "fleet.example" },
    );
    const secrets = { TEAM_TOKEN: "gho_canary" };
    const pod = new DeployedPod(manifests, { folder, secrets, env: { COPILOT_OFFLINE: "true" } });
    onTestFinished(async () => {
      pod.kill();
      await pod.ended;
      rmSync(folder, { recursive: true, force: true });
    });
    await Promise.race([pod.started(), pod.ended.then(({ stderr }) => Promise.reject(new Error(stderr)))]);

    const metrics = await pod.reach(METRICS_PORT);
    const probe = async (path: string) => (await fetch(`http://${metrics}${path}`).catch(() => null))?.status ?? 0;
    await eventually("readiness", async () => (await probe("/readyz")) === 200, 30_000);
    expect(await probe("/healthz")).toBe(200);

    // Only the volumes are writable, and only the fleet's user can read the state folder.
    const written = await pod.exec(["sh", "-c", "touch /opt/copilotfleet/x /x /etc/copilotfleet/x; id -u"]);
    expect(written.stderr.match(/Read-only file system/g)).toHaveLength(3);
    expect(written.stdout).toBe(`${UID}\n`);
    const state = statSync(join(folder, "volume-state", "state"));
    expect([state.uid, state.mode & 0o777]).toEqual([UID, 0o700]);

    const issued = await pod.exec(["copilotfleet", "token", "issue", "--user", "alice", "--json"]);
    expect(issued).toMatchObject({ code: 0, stderr: "" });
    const { token } = JSON.parse(issued.stdout) as { token: string };
    const client = await RawClient.as(await pod.reach(DOOR_PORT), token);
    expect(await client.request("session.create", { sessionId: "s" })).toMatchObject({ result: {} });
    await client.turn("s", "hello");
    expect(JSON.stringify(client.received)).toContain("[turn 1] hello");
    expect(await pod.exec(["copilotfleet", "ps"])).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/alice.*ready/),
    });

    // Call the HTTP API as clients do: through the Ingress, and from inside the cluster.
    const api = await pod.reach(HTTP_PORT);
    const curl = async (host: string, path: string, ...more: string[]) => {
      const headers = [`Host: ${host}`, `Authorization: Bearer ${token}`, "Content-Type: application/json"];
      const args = ["-sN", `http://${api}${path}`, ...headers.flatMap((header) => ["-H", header]), ...more];
      return (await promisify(execFile)("curl", args)).stdout;
    };
    const fromPage = ["-H", "Origin: https://fleet.example"];
    expect(await curl("fleet.example", "/v1/me", ...fromPage)).toContain('"user":"alice"');
    expect(await curl("fleet.chat.svc:4380", "/v1/sessions", "-d", '{"id":"web"}')).toContain('"owner":"alice"');
    const asStream = ["-H", "Accept: text/event-stream", "-d", '{"prompt":"hello"}'];
    const streamed = await curl("fleet.example", "/v1/sessions/web/turns", ...fromPage, ...asStream);
    expect(streamed).toMatch(/\[turn 1\] hello[\s\S]*event: turn\.end/);
    expect(await curl("evil.example", "/v1/me")).toContain("FLEET_METHOD_DENIED");

    // The user's server has read the token from the file of the Secret. No process shows it in its environment.
    const holders = "for p in /proc/[0-9]*; do if grep -q gho_canary $p/environ; then echo $p; fi; done";
    expect((await pod.exec(["sh", "-c", holders])).stdout).toBe("");

    // The init process reaps the processes that a command leaves behind.
    await pod.exec(["sh", "-c", "sleep 0.2 & exit 0"]);
    const states = ["sh", "-c", "grep -h ^State: /proc/[0-9]*/status; grep -h ^Name: /proc/[0-9]*/status"];
    const seen = async () => (await pod.exec(states)).stdout;
    expect(await seen()).toMatch(/Name:\s+tini\n/);
    await eventually("the end of the orphan", async () => !/State:\s+Z|Name:\s+sleep/.test(await seen()));

    // End the pod as a kubelet does, during a turn.
    await client.request("session.send", { sessionId: "s", prompt: "!delay 3000 last" });
    expect(await pod.exec(pod.preStop)).toMatchObject({ code: 0, stderr: "" });
    await client.request("session.send", { sessionId: "s", prompt: "!delay 3000 the very last" });
    process.kill(pod.init, "SIGTERM");
    await eventually("not ready", async () => (await probe("/readyz")) !== 200);
    const late = setTimeout(() => process.kill(pod.init, "SIGKILL"), pod.graceMs);
    const end = await pod.ended;
    clearTimeout(late);
    expect(end.code, end.stderr).toBe(0);
    expect(JSON.stringify(client.received)).toContain("[turn 3] the very last");
    expect(end.stderr).toContain('"msg":"drained"');
    expect(pod.processes()).toEqual([]);
  },
);
