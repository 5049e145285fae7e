import { spawnSync } from "node:child_process";
import { chmodSync, cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { renderSystemd, writeFiles } from "../../src/deploy/systemd.js";
import { configured, has } from "./render.js";

const ECHO = { COPILOTFLEET_PROVIDER_TYPE: "echo" };

function systemd(env: Record<string, string> = {}): ReturnType<typeof renderSystemd> {
  return renderSystemd(configured({ ...ECHO, ...env }), {
    command: "/usr/local/bin/copilotfleet",
    user: "copilotfleet",
  });
}

function unit({ files }: ReturnType<typeof renderSystemd>, name: string): string {
  return files.find(({ path }) => path.endsWith(`/${name}`))?.content ?? "";
}

function scratch(): string {
  const folder = mkdtempSync(join(tmpdir(), "copilotfleet-systemd-"));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** The exposure of a service as systemd-analyze rates it, from 0 to 10. */
function exposure(path: string): number {
  const { stdout } = spawnSync("systemd-analyze", ["security", "--offline=true", "--no-pager", path], {
    encoding: "utf8",
  });
  return Number(/Overall exposure level for \S+: (\d+\.\d+)/.exec(stdout)?.[1] ?? Number.NaN);
}

describe("the systemd units", () => {
  it("the systemd units send SIGTERM only to serve, and give serve enough time to drain", () => {
    const service = unit(systemd({ COPILOTFLEET_DRAIN_TIMEOUT: "90s" }), "copilotfleet.service");
    expect(service).toContain("\nKillMode=mixed\n");
    expect(service).toContain("\nOOMPolicy=continue\n");
    expect(Number(/^TimeoutStopSec=(\d+)s$/m.exec(service)?.[1])).toBeGreaterThan(90 + 20);
  });

  it("the systemd units have a socket for the front door only if the door has an IP address", () => {
    expect(unit(systemd(), "copilotfleet.socket")).toContain("\nListenStream=127.0.0.1:4300\n");
    expect(unit(systemd({ COPILOTFLEET_SERVE_LISTEN: "[::1]:4301" }), "copilotfleet.socket")).toContain(
      "=[::1]:4301\n",
    );
    for (const listen of ["null", "host.example:4300"]) {
      const rendered = systemd({ COPILOTFLEET_SERVE_LISTEN: listen, COPILOTFLEET_INSECURE: "true" });
      expect(unit(rendered, "copilotfleet.socket")).toBe("");
      expect(rendered.text).not.toContain("copilotfleet.socket");
    }
  });

  it("the systemd units have a socket for the HTTP API only if serve.http has an IP address", () => {
    const http = (address: string, env = {}) => systemd({ COPILOTFLEET_SERVE_HTTP: address, ...env });
    const rendered = http("localhost:4380");
    const socket = unit(rendered, "copilotfleet-http.socket");
    expect(socket).toContain("\nListenStream=127.0.0.1:4380\n");
    expect(socket).toContain("\nFileDescriptorName=http\nService=copilotfleet.service\n");
    const service = unit(rendered, "copilotfleet.service");
    for (const key of ["Requires", "After", "Sockets", "Also"])
      expect(service).toContain(`\n${key}=copilotfleet.socket copilotfleet-http.socket\n`);
    expect(rendered.notices[0]).toContain("--now copilotfleet.socket copilotfleet-http.socket copilotfleet.service ");
    expect(JSON.parse(unit(rendered, "config.json"))).toMatchObject({ serve: { http: "localhost:4380" } });
    expect(unit(http("127.0.0.1:4380", { COPILOTFLEET_SERVE_LISTEN: "null" }), "copilotfleet.service")).toContain(
      "\nSockets=copilotfleet-http.socket\n",
    );
    for (const text of [
      systemd().text,
      http("127.0.0.1:0").text,
      http("api.example:4380", { COPILOTFLEET_INSECURE: "true" }).text,
    ])
      expect(text).not.toContain("copilotfleet-http.socket");
  });

  it.each(["listen", "http"])("deploy systemd refuses a serve.%s that other machines can reach without TLS", (key) => {
    const env = { [`COPILOTFLEET_SERVE_${key.toUpperCase()}`]: "0.0.0.0:4390" };
    const message = `serve.${key} is "0.0.0.0:4390", which other machines can reach, and serve.tls is not set`;
    expect(() => systemd(env)).toThrow(message);
    expect(systemd({ ...env, COPILOTFLEET_INSECURE: "true" }).files).not.toEqual([]);
  });

  it("the systemd units get each secret as a credential, and no secret in an environment", () => {
    const rendered = systemd({
      COPILOTFLEET_STORE: "redis://127.0.0.1:6379/0",
      COPILOTFLEET_STORE_OPTIONS_PASSWORD: '{"env":"REDIS_PASSWORD"}',
      REDIS_PASSWORD: "canary",
      COPILOTFLEET_PROVIDER_TYPE: "openai",
      COPILOTFLEET_PROVIDER_BASE_URL: "https://models.example/v1",
      COPILOTFLEET_PROVIDER_API_KEY: '{"env":"MODEL_KEY"}',
      COPILOTFLEET_AUTH_GITHUB_TOKEN: '{"env":"TOKEN_{user}"}',
    });
    expect(JSON.stringify(rendered)).not.toContain("canary");
    expect(JSON.parse(unit(rendered, "config.json"))).toEqual({
      provider: { type: "openai", baseUrl: "https://models.example/v1" },
      store: "redis://127.0.0.1:6379/0",
    });
    for (const name of ["copilotfleet.service", "copilotfleet-gc.service"]) {
      const lines = unit(rendered, name).split("\n");
      expect(lines.filter((line) => line.startsWith("LoadCredential="))).toEqual([
        "LoadCredential=REDIS_PASSWORD:/etc/copilotfleet/secrets/REDIS_PASSWORD",
        "LoadCredential=MODEL_KEY:/etc/copilotfleet/secrets/MODEL_KEY",
        "LoadCredential=users:/etc/copilotfleet/secrets/users",
      ]);
      expect(lines).toEqual(
        expect.arrayContaining([
          "Environment=COPILOTFLEET_STORE_OPTIONS_PASSWORD_FILE=%d/REDIS_PASSWORD",
          "Environment=COPILOTFLEET_PROVIDER_API_KEY_FILE=%d/MODEL_KEY",
          "Environment=COPILOTFLEET_AUTH_GITHUB_TOKEN_FILE=%d/users_TOKEN_{user}",
          "EnvironmentFile=-/etc/copilotfleet/secrets.env",
        ]),
      );
    }
    const notices = rendered.notices.join("\n");
    expect(notices).toContain("owned by root) must hold REDIS_PASSWORD, MODEL_KEY, with");
    expect(notices).toContain("/etc/copilotfleet/secrets/users must be a folder that holds TOKEN_{user}, with");
    expect(rendered.notices.at(-1)).toContain(
      "sudo -u copilotfleet env COPILOTFLEET_HOME=/var/lib/copilotfleet/state XDG_CONFIG_HOME=/etc COPILOTFLEET_STORE_OPTIONS_PASSWORD_FILE=/run/credentials/copilotfleet.service/REDIS_PASSWORD ",
    );
    expect(unit(systemd(), "copilotfleet.service")).not.toMatch(/LoadCredential|_FILE=/);
  });

  it("the systemd units delegate control groups to serve alone", () => {
    expect(unit(systemd(), "copilotfleet.service")).toContain("\nDelegate=memory pids cpu\n");
    expect(unit(systemd(), "copilotfleet-gc.service")).not.toContain("Delegate=");
  });

  it.skipIf(!has("systemd-analyze"))(
    "the systemd units have an exposure of at most 1.5 for systemd-analyze security (skipped without systemd-analyze)",
    async () => {
      const root = scratch();
      const rendered = systemd({ COPILOTFLEET_STORE: "redis://127.0.0.1:6379/0" });
      const services = rendered.files.filter(({ path }) => path.endsWith(".service"));
      expect(services).toHaveLength(2);
      const written = await writeFiles(root, services);
      for (const path of written) expect(exposure(path)).toBeLessThanOrEqual(1.5);
      // Show that the rating gets worse when a unit allows more.
      const [service = ""] = written;
      writeFileSync(service, readFileSync(service, "utf8").replace(/^SystemCallFilter=.*$/gm, ""));
      expect(exposure(service)).toBeGreaterThan(1.5);
    },
  );

  it("the systemd units run the configured host, and let it write only to its state and the shared storage", () => {
    const rendered = systemd({
      COPILOTFLEET_STORE: "redis://127.0.0.1:6379/0",
      COPILOTFLEET_HOST_NAME: "host-7",
      COPILOTFLEET_HOST_ADVERTISE: "10.0.0.7:4300",
      COPILOTFLEET_STORAGE_SHARED: "/mnt/the 9% fleet",
    });
    expect(JSON.parse(unit(rendered, "config.json"))).toMatchObject({
      host: { name: "host-7", advertise: "10.0.0.7:4300" },
      storage: { shared: "/mnt/the 9% fleet" },
    });
    // Everything except the state folder and the shared storage is read-only for the host.
    for (const name of ["copilotfleet.service", "copilotfleet-gc.service"]) {
      expect(unit(rendered, name)).toContain("\nProtectSystem=strict\n");
      expect(unit(rendered, name)).toContain('\nReadWritePaths=-"/mnt/the 9%% fleet"\n');
      expect(unit(rendered, name)).toContain('\nRequiresMountsFor="/mnt/the 9%% fleet"\n');
      expect(unit(systemd(), name)).not.toMatch(/ReadWritePaths|RequiresMountsFor/);
    }
    expect(rendered.notices.join()).toContain("copilotfleet must have the same uid and be able to write in it");
  });

  it("the systemd units are printed unchanged, each below its path, and written unchanged with --output", async () => {
    const rendered = systemd();
    for (const { path, content } of rendered.files) expect(rendered.text).toContain(`# ${path}\n${content}`);
    const folder = scratch();
    const written = await writeFiles(folder, rendered.files);
    for (const [index, { path, content, mode }] of rendered.files.entries()) {
      expect(written[index]).toBe(join(folder, path));
      expect(readFileSync(join(folder, path), "utf8")).toBe(content);
      expect((statSync(join(folder, path)).mode & 0o777).toString(8).padStart(4, "0")).toBe(mode);
    }
    writeFileSync(join(folder, "file"), "");
    await expect(writeFiles(join(folder, "file"), rendered.files)).rejects.toMatchObject({
      code: "FLEET_USAGE_INVALID",
      message: expect.stringContaining("--output"),
    });
  });

  it.skipIf(!has("systemd-analyze"))(
    "the systemd units pass systemd-analyze verify (skipped without systemd-analyze)",
    async () => {
      const root = scratch();
      const command = join(root, "usr/local/bin/copilotfleet");
      mkdirSync(dirname(command), { recursive: true });
      writeFileSync(command, "#!/bin/sh\n");
      chmodSync(command, 0o755);
      // Copy the units of the system, because our units refer to its targets and slices.
      cpSync("/usr/lib/systemd/system", join(root, "usr/lib/systemd/system"), { recursive: true, dereference: false });
      const rendered = systemd({
        COPILOTFLEET_STORE: "redis://127.0.0.1:6379/0",
        COPILOTFLEET_STORAGE_SHARED: "/mnt/the 9% fleet",
        COPILOTFLEET_SERVE_HTTP: "127.0.0.1:4380",
      });
      const written = await writeFiles(root, rendered.files);
      const verify = () => {
        const units = written.filter((path) => /\.(service|socket|timer)$/.test(path));
        return spawnSync(
          "systemd-analyze",
          [`--root=${root}`, "--man=no", "verify", ...units.map((path) => path.slice(root.length))],
          {
            encoding: "utf8",
          },
        );
      };
      const complaints = (text: string) => text.split("\n").filter((line) => line.includes("copilotfleet"));
      const good = verify();
      expect({ status: good.status, complaints: complaints(good.stderr) }).toEqual({ status: 0, complaints: [] });
      // Show that the verification reports faults.
      const [service = ""] = written;
      writeFileSync(service, readFileSync(service, "utf8").replace("KillMode=mixed", "KillMod=mixed"));
      expect(complaints(verify().stderr).join()).toContain("KillMod");
      rmSync(command);
      expect(verify().status).not.toBe(0);
    },
  );
});
