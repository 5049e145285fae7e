import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { DoctorResult } from "../../src/fleet/doctor/doctor.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { GitHubAccounts } from "../fixtures/identity/github-accounts.js";
import { Issuer } from "../fixtures/identity/issuer.js";

const fleet = testFleet({ COPILOTFLEET_PROVIDER_TYPE: "echo" });
let issuer: Issuer;
let github: GitHubAccounts;
beforeAll(async () => {
  issuer = await Issuer.open();
  github = await GitHubAccounts.open();
});
afterAll(async () => {
  await issuer[Symbol.asyncDispose]();
  await github[Symbol.asyncDispose]();
});

const look = async (env: NodeJS.ProcessEnv) => {
  const { stdout } = await fleet.run(["doctor", "--json"], { env });
  return (JSON.parse(stdout) as DoctorResult).checks.find(({ name }) => name === "sign-on");
};
const issuers = () => JSON.stringify([{ issuer: issuer.url, audience: "copilotfleet" }]);

describe("doctor", () => {
  it("doctor fetches the keys of each issuer, and fails if an issuer answers with status 503", async () => {
    const env = { COPILOTFLEET_IDENTITY_JWT: issuers() };
    expect(await look(env)).toMatchObject({ level: "ok", detail: `${issuer.url}: 1 key` });
    issuer.mode = "down";
    expect(await look(env)).toMatchObject({
      level: "failed",
      detail: expect.stringContaining("answers with status 503"),
    });
    issuer.mode = "good";
    expect(await look({})).toBeUndefined();
  });

  it("doctor checks that GitHub answers, and warns if every GitHub account may sign on", async () => {
    github.trouble = { status: 200 };
    const env = { COPILOTFLEET_IDENTITY_GITHUB_API: github.url };
    const detail = `${github.url} answers with status 200`;
    expect(await look(env)).toMatchObject({
      level: "warning",
      detail: `${detail}. Every account on GitHub may sign on`,
    });
    const closed = { ...env, COPILOTFLEET_IDENTITY_GITHUB_ORGANIZATIONS: "acme" };
    expect(await look(closed)).toMatchObject({ level: "ok", detail });
  });
});
