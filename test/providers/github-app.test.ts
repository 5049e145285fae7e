import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { FleetError } from "../../src/base/errors.js";
import { mintInstallationToken } from "../../src/providers/github-app.js";
import { AppToken } from "../../src/providers/github-tokens.js";
import { FakeGitHub } from "../fixtures/models/fake-github.js";
import { removeFolder } from "../fixtures/remove-folder.js";

const NEVER = new AbortController().signal;
const folder = mkdtempSync(join(tmpdir(), "fleet-app-"));
let github: FakeGitHub;

beforeAll(async () => {
  github = await FakeGitHub.start();
});
afterAll(async () => {
  await github[Symbol.asyncDispose]();
  await removeFolder(folder);
});

function app(key: string, mode = 0o600) {
  const path = join(folder, `key-${Math.random()}`);
  writeFileSync(path, key, { mode });
  const privateKey = { from: "file", path } as const;
  return { appId: github.appId, installationId: github.installationId, privateKey };
}

async function refusal(work: Promise<unknown>): Promise<FleetError> {
  const error: unknown = await work.catch((reason: unknown) => reason);
  if (!(error instanceof FleetError)) throw new Error("nothing was refused", { cause: error });
  return error;
}

describe("mintInstallationToken", () => {
  it("mintInstallationToken signs a proof with the App's key, and returns the token with its lifetime", async () => {
    const minted = await mintInstallationToken(app(github.key), github.env, NEVER);
    expect(minted.token).toMatch(/^ghs_minted\d+$/);
    expect(minted.lifetimeMs).toBeGreaterThan(59 * 60_000);
    expect(minted.lifetimeMs).toBeLessThanOrEqual(60 * 60_000 + 1_000);
  });

  it.each([-50_000, 50_000])("a token's lifetime does not change if GitHub's clock is %i ms ahead", async (aheadMs) => {
    github.aheadMs = aheadMs;
    onTestFinished(() => {
      github.aheadMs = 0;
    });
    const { lifetimeMs } = await mintInstallationToken(app(github.key), github.env, NEVER);
    expect(lifetimeMs).toBeGreaterThan(59 * 60_000 + 50_000);
    expect(lifetimeMs).toBeLessThanOrEqual(60 * 60_000 + 1_000);
  });

  it.each([401, 403, 404, 422])("mintInstallationToken reports status %s as a refusal by GitHub", async (status) => {
    github.mintStatus = status;
    onTestFinished(() => {
      github.mintStatus = undefined;
    });
    const error = await refusal(mintInstallationToken(app(github.key), github.env, NEVER));
    expect(error).toMatchObject({ code: "FLEET_CREDENTIAL_REFUSED", exit: 7 });
    expect(error.message).toContain(`installation 42 of App 4711 (${status}: "This installation has been suspended")`);
  });

  it.each([429, 500, 503])("mintInstallationToken reports status %s as an outage", async (status) => {
    github.mintStatus = status;
    onTestFinished(() => {
      github.mintStatus = undefined;
    });
    const error = await refusal(mintInstallationToken(app(github.key), github.env, NEVER));
    expect(error).toMatchObject({ code: "FLEET_TOKEN_UNAVAILABLE" });
  });

  it("another App's key is refused, and no message contains the key", async () => {
    const other = await FakeGitHub.start();
    onTestFinished(async () => await other[Symbol.asyncDispose]());
    const error = await refusal(mintInstallationToken(app(other.key), github.env, NEVER));
    expect(error).toMatchObject({ code: "FLEET_CREDENTIAL_REFUSED" });
    expect(JSON.stringify([error.message, error.suggestions, error.cause])).not.toContain("PRIVATE KEY");
  });

  it("the App's key may come from a variable or a command, which has all its lines", async () => {
    const { appId, installationId } = github;
    const env = { ...github.env, PATH: process.env.PATH, APP_KEY: github.key };
    for (const privateKey of [
      { from: "env", name: "APP_KEY" },
      { from: "command", command: 'printf "%s" "$APP_KEY"' },
    ] as const) {
      const minted = await mintInstallationToken({ appId, installationId, privateKey }, env, NEVER);
      expect(minted.token).toMatch(/^ghs_minted/);
    }
  });

  it("a file without an RSA key, and a file that others can read, are refused before GitHub is asked", async () => {
    const { mints } = github;
    const noKey = await refusal(mintInstallationToken(app("canary"), github.env, NEVER));
    expect(noKey).toMatchObject({ code: "FLEET_TOKEN_UNAVAILABLE" });
    expect(noKey.message).toContain("is not an RSA key");
    expect(noKey.message).not.toContain("canary");
    const exposed = await refusal(mintInstallationToken(app(github.key, 0o644), github.env, NEVER));
    expect(exposed.message).toMatch(/^The private key file .* has mode 644/);
    expect(github.mints).toBe(mints);
  });

  it("the signed proof of an App is never sent without encryption to another machine", async () => {
    const env = { COPILOT_DEBUG_GITHUB_API_URL: "http://192.0.2.1" };
    const error = await refusal(mintInstallationToken(app(github.key), env, NEVER));
    expect(error.message).toContain("is not an https:// address");
  });

  it("GITHUB_API_URL makes mintInstallationToken ask a GitHub Enterprise server", async () => {
    const error = await refusal(
      mintInstallationToken(app(github.key), { GITHUB_API_URL: "https://127.0.0.1:9/api/v3" }, NEVER),
    );
    expect(error.message).toContain("127.0.0.1:9 cannot be asked for it");
  });
});

/** An AppToken whose source of tokens and whose clock the test controls. */
class Source {
  nowMs = 0;
  mints = 0;
  failure: Error | undefined;
  readonly token = new AppToken(
    async () => {
      this.mints++;
      if (this.failure !== undefined) throw this.failure;
      return { token: `ghs_${this.mints}`, lifetimeMs: 100_000 };
    },
    () => this.nowMs,
  );
}

describe("AppToken", () => {
  it("AppToken renews its token after half of the token's lifetime, once for all callers", async () => {
    const source = new Source();
    const get = async () => await source.token.get();
    expect(await Promise.all([get(), get(), get()])).toEqual(["ghs_1", "ghs_1", "ghs_1"]);
    source.nowMs = 49_999;
    expect(await get()).toBe("ghs_1");
    source.nowMs = 50_000;
    expect(await Promise.all([get(), get()])).toEqual(["ghs_2", "ghs_2"]);
    expect(source.mints).toBe(2);
  });

  it("AppToken keeps a valid token during an outage, and asks for the next one after growing pauses", async () => {
    const source = new Source();
    await source.token.get();
    source.failure = new FleetError("FLEET_TOKEN_UNAVAILABLE", "GitHub is away");
    for (source.nowMs = 50_000; source.nowMs < 100_000; source.nowMs += 500)
      expect(await source.token.get()).toBe("ghs_1");
    expect(source.mints).toBe(1 + 6);
    source.nowMs = 200_000;
    await expect(source.token.get()).rejects.toThrow("GitHub is away");
    source.failure = undefined;
    source.nowMs += 4_999;
    await expect(source.token.get()).rejects.toThrow("GitHub is away");
    source.nowMs += 1;
    expect(await source.token.get()).toBe("ghs_9");
  });

  it("AppToken drops a valid token when GitHub refuses to issue the next one", async () => {
    const source = new Source();
    await source.token.get();
    source.failure = new FleetError("FLEET_CREDENTIAL_REFUSED", "suspended");
    source.nowMs = 60_000;
    await expect(source.token.get()).rejects.toThrow("suspended");
    await expect(source.token.get()).rejects.toThrow("suspended");
    expect(source.mints).toBe(2);
  });

  it("AppToken asks for a new token after the last one was refused, and after the clock was set back", async () => {
    const source = new Source();
    await source.token.get();
    source.token.forget();
    expect(await source.token.get()).toBe("ghs_2");
    source.nowMs = -1;
    expect(await source.token.get()).toBe("ghs_3");
  });
});
