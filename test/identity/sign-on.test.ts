import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it, onTestFinished, vi } from "vitest";
import { systemClock } from "../../src/base/clock.js";
import { loadConfig } from "../../src/config/load/load.js";
import { SignOn } from "../../src/identity/sign-on.js";
import { issueHostToken, issueToken } from "../../src/identity/tokens.js";
import { openFileStore } from "../../src/store/file/file-store.js";
import { GitHubAccounts } from "../fixtures/identity/github-accounts.js";
import { Issuer } from "../fixtures/identity/issuer.js";

it("onSignOn reports the kind of credential and the result of each sign-on, but not the user", async () => {
  const folder = await mkdtemp(join(tmpdir(), "copilotfleet-sign-on-"));
  onTestFinished(async () => await rm(folder, { recursive: true, force: true }));
  await using issuer = await Issuer.open();
  await using away = await Issuer.open();
  away.mode = "down";
  await using github = await GitHubAccounts.open();
  github.accounts.set("gho_canary", { login: "canary" });
  const jwt = [issuer, away].map(({ url }) => ({ issuer: url, audience: "copilotfleet" }));
  const flags = { identity: { jwt, github: { api: github.url } } };
  const { config } = loadConfig({ env: { COPILOTFLEET_HOME: folder }, cwd: folder, flags });
  const store = openFileStore(join(folder, "state"));
  const reports: string[] = [];
  const signOn = new SignOn({
    store,
    config,
    clock: systemClock,
    onSignOn: ({ ms, ...report }) => {
      expect(ms).toBeGreaterThan(0);
      reports.push(Object.values(report).join(" "));
    },
  });
  const reported = async (credential: unknown) => {
    await signOn.identify(credential).catch(() => "it is reported, too");
    return reports.splice(0);
  };
  expect(await reported((await issueToken(store, "canary", 60_000)).token)).toEqual(["token accepted"]);
  expect(await reported((await issueHostToken(store, "one", "two")).token)).toEqual(["host accepted"]);
  expect(await reported({})).toEqual(["token refused"]);
  expect(await reported(await issuer.token({ sub: "canary" }))).toEqual(["jwt accepted"]);
  expect(await reported(await issuer.token({ aud: "other" }))).toEqual(["jwt refused"]);
  expect(await reported(await away.token())).toEqual(["jwt unchecked"]);
  expect(await reported("gho_canary")).toEqual(["github accepted"]);
  expect(await reported("gho_other")).toEqual(["github refused"]);
  github.trouble = { status: 502 };
  expect(await reported("gho_third")).toEqual(["github unchecked"]);
  vi.spyOn(store.tokens, "read").mockRejectedValue(new Error("the store is away"));
  expect(await reported(`cft_${"a".repeat(16)}_${"b".repeat(43)}`)).toEqual(["token unchecked"]);
  await store.close();
});
