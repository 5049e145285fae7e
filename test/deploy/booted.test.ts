import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { renderSystemd } from "../../src/deploy/systemd.js";
import type { ServerView } from "../../src/servers/server.js";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import { BootedMachine, bootProblem } from "../fixtures/hosts/booted-machine.js";
import { startToolModel } from "../fixtures/models/tool-model.js";
import { freePorts, RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { configured } from "./render.js";

const problem = bootProblem() ?? redisProblem();
if (problem !== undefined) console.warn(`the systemd units are not run: ${problem}`);

/** Scripts that an agent runs in a server's shell. Each key names the fact that its script prints. */
const SEEN = {
  "the filter of system calls": "grep -c 'Seccomp:.2' /proc/self/status",
  "processes of root": "ls -d /proc/[0-9]* | while read p; do [ -O $p ] || [ ! -e $p ] || echo $p; done | wc -l",
  namespaces: "unshare --user true 2>/dev/null && echo made || echo refused",
  "the credentials": "cat /run/credentials/copilotfleet.service/* 2>/dev/null | wc -c",
  "ssh and git": 'git init -q "$HOME/repository" && echo works',
};

it.skipIf(problem !== undefined)(
  "a real systemd starts, restarts and drains the fleet with the rendered units (skipped without root)",
  async () => {
    const folder = mkdtempSync(join(tmpdir(), "copilotfleet-booted-"));
    onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
    const redis = await RedisServer.start();
    await redis.client.config("SET", "requirepass", "canary-redis");
    onTestFinished(() => redis.end());
    await using model = await startToolModel();
    const [door, http, metrics] = await freePorts(3);
    const { files, notices } = renderSystemd(
      configured({
        COPILOTFLEET_STORE: `redis://127.0.0.1:${redis.port}/0`,
        COPILOTFLEET_STORE_OPTIONS_PASSWORD: '{"env":"REDIS_PASSWORD"}',
        COPILOTFLEET_PROVIDER_BASE_URL: model.baseUrl,
        COPILOTFLEET_PROVIDER_API_KEY: '{"env":"MODEL_KEY"}',
        COPILOTFLEET_SESSION_APPROVE: "all",
        COPILOTFLEET_SERVE_LISTEN: `127.0.0.1:${door}`,
        COPILOTFLEET_SERVE_HTTP: `127.0.0.1:${http}`,
        COPILOTFLEET_SERVE_METRICS: `127.0.0.1:${metrics}`,
      }),
      { command: "/usr/local/bin/copilotfleet", user: "copilotfleet" },
    );
    const secret = (name: string, content: string) => ({
      path: `/etc/copilotfleet/secrets/${name}`,
      mode: "0600",
      content,
    });
    await using machine = await BootedMachine.boot(folder, [
      ...files,
      secret("REDIS_PASSWORD", "canary-redis\n"),
      secret("MODEL_KEY", "canary-key\n"),
      // The machine has no journal, so let the units append to a file.
      {
        path: "/etc/systemd/system/copilotfleet.service.d/log.conf",
        mode: "0644",
        content: "[Service]\nStandardOutput=append:/mnt/log\nStandardError=append:/mnt/log\n",
      },
    ]);
    const ok = async (command: string) => {
      const ran = await machine.run(command);
      const log = ran.code === 0 ? "" : (await machine.run("cat /mnt/log; systemctl status 'copilotfleet*'")).stdout;
      expect(ran, `${command}\n${ran.stderr}${machine.messages}\n${log}`).toMatchObject({ code: 0 });
      return ran.stdout;
    };
    // Run the command that the notices give for the installation.
    const [install = ""] = notices.flatMap((notice) => /^Once the files are in place: (.*)$/.exec(notice)?.[1] ?? []);
    await ok(install);
    const [asUser = ""] = notices.flatMap(
      (notice) => /^To run commands by hand: sudo -u (.*) ps$/.exec(notice)?.[1] ?? [],
    );
    const byHand = (args: string) => ok(`setpriv --clear-groups --regid copilotfleet --reuid ${asUser} ${args}`);
    const ready = async (when: string) => {
      const probe = async () => (await fetch(`http://127.0.0.1:${metrics}/readyz`).catch(() => null))?.status === 200;
      await eventually(`readiness ${when}`, probe, 60_000).catch(async () => ok(`cat /mnt/log; exit 1 # ${when}`));
    };
    await ready("after the start");

    const { token } = JSON.parse(await byHand("token issue --user alice --json")) as { token: string };
    const client = await RawClient.as(`127.0.0.1:${door}`, token);
    expect(await client.request("session.create", { sessionId: "s", model: "gpt-5" })).toMatchObject({ result: {} });
    await client.turn("s", "hello");

    const [server] = (JSON.parse(await byHand("ps --json")) as { servers: ServerView[] }).servers;
    expect(server?.sandbox.mode).toBe("landlock");
    expect(server?.sandbox.not).not.toContain("system-calls");
    const shown = Object.values(SEEN)
      .map((script) => `( ${script} )`)
      .join("; ");
    await byHand(
      `send s ${quoted(`!tool bash ${JSON.stringify({ command: `{ ${shown}; } > $HOME/seen`, description: "looks" })}`)} --user alice`,
    );
    const seen = (await ok("cat /var/lib/copilotfleet/state/servers/*/home/seen")).trim().split("\n");
    expect(Object.fromEntries(Object.keys(SEEN).map((name, index) => [name, seen[index]]))).toEqual({
      "the filter of system calls": "1",
      "processes of root": "0",
      namespaces: "refused",
      "the credentials": "0",
      "ssh and git": "works",
    });
    // No process has a secret in its environment.
    const environments = await ok("cat /proc/[0-9]*/environ");
    expect(environments).toContain(
      "COPILOTFLEET_STORE_OPTIONS_PASSWORD_FILE=/run/credentials/copilotfleet.service/REDIS_PASSWORD",
    );
    expect(environments).not.toContain("canary");

    await ok("systemctl start copilotfleet-gc.service");
    const me = `curl -sS http://127.0.0.1:${http}/v1/me -H "Authorization: Bearer ${token}"`;
    expect(await ok(me)).toContain('"user":"alice"');
    // A request that comes while serve restarts waits in the socket, which systemd keeps open.
    const pid = "systemctl show --value --property=MainPID copilotfleet.service";
    const before = (await ok(pid)).trim();
    const [, during] = await Promise.all([
      ok("systemctl restart copilotfleet.service"),
      ok(`while [ "$(${pid})" = ${before} ]; do sleep 0.01; done; ${me}`),
    ]);
    expect(during).toContain('"user":"alice"');
    await ready("after the restart");
    const again = await RawClient.as(`127.0.0.1:${door}`, token);
    expect(await again.request("session.resume", { sessionId: "s" })).toMatchObject({ result: {} });
    await ok("systemctl stop copilotfleet.service");
    expect(await ok("systemctl show --property=Result,ExecMainStatus copilotfleet.service")).toBe(
      "Result=success\nExecMainStatus=0\n",
    );
    expect(await ok("cat /mnt/log")).toContain('"msg":"drained"');
    expect(await ok("ps -eo user:20= | grep -c copilotfleet || true")).toBe("0\n");
  },
);

const quoted = (text: string) => `'${text.replaceAll("'", "'\\''")}'`;
