import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { TestClock } from "../fixtures/fleets/test-clock.js";
import { GitHubAccounts } from "../fixtures/identity/github-accounts.js";
import { FakeGitHub } from "../fixtures/models/fake-github.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

describe("the front door, for a user with a GitHub token,", () => {
  it("admits only organization members, and reveals no token, with the configuration in docs/identity.md", async () => {
    await using github = await GitHubAccounts.open();
    const page = readFileSync(new URL("../../docs/identity.md", import.meta.url), "utf8");
    const address = "https://api.github.com";
    const block = [...page.matchAll(/```json\n(.*?)```/gs)]
      .map(([, text = ""]) => text)
      .find((text) => text.includes(address));
    const config = JSON.parse((block ?? "").replaceAll(address, github.url)) as object;
    await using at = await DoorFleet.open({ config });
    github.accounts.set("gho_canaryMember", { login: "Octo-Cat", memberships: { acme: "active" } });
    github.accounts.set("gho_canaryOther", { login: "mallory" });
    const client = await RawClient.as(at.url, "gho_canaryMember");
    expect(at.events).toContainEqual(expect.objectContaining({ event: "connected", user: "Octo-Cat" }));
    for (const token of ["gho_canaryOther", "gho_canaryNobody", "ghp_canary-x"]) {
      const stranger = await RawClient.open(at.url);
      const { error } = await stranger.request("connect", { token });
      expect(error).toEqual({ code: -32002, message: "AUTHENTICATION_FAILED" });
      await stranger.end();
    }
    expect(at.events.flatMap(({ event, detail }) => (event === "token-refused" ? [detail] : []))).toEqual([
      "The GitHub token is refused: mallory is not an active member of acme.",
      "The GitHub token is refused: GitHub does not know the token.",
      "This is not a GitHub token.",
    ]);
    expect(await client.request("ping", { message: "x" })).toMatchObject({ result: {} });
    expect(JSON.stringify(at.events)).not.toContain("canary");
  });

  it("admits a user while a stranger presents hundreds of invented tokens from another address", async () => {
    await using github = await GitHubAccounts.open();
    github.accounts.set("gho_ofAlice", { login: "alice" });
    await using at = await DoorFleet.open({ config: { identity: { github: { api: github.url } } } });
    let answer: (() => void) | undefined;
    github.held = new Promise<void>((resolve) => {
      answer = resolve;
    });
    const open = Array.from({ length: 200 }, async () => await RawClient.open(at.url, false, "127.0.0.2"));
    for (const [index, stranger] of (await Promise.all(open)).entries()) {
      stranger.send({ id: 1, method: "connect", params: { token: `gho_made${index}` } });
    }
    // The door reads this wrong token after the strangers' tokens. So once it has refused this one, it has read all of
    // them.
    await expect(RawClient.as(at.url, "made up")).rejects.toThrow("AUTHENTICATION_FAILED");
    expect(github.asked).toHaveLength(64);
    const alice = await RawClient.open(at.url);
    const greeting = alice.request("connect", { token: "gho_ofAlice" });
    answer?.();
    expect(await greeting).toMatchObject({ result: {} });
    expect(github.asked.findIndex(({ token }) => token === "gho_ofAlice")).toBeLessThan(70);
  });

  it.each(["per-user", "shared"] as const)(
    "opens a user's sessions on a %s server with the user's GitHub token",
    async (isolation) => {
      await using github = await GitHubAccounts.open();
      github.accounts.set("gho_ofAlice", { login: "alice" });
      await using at = await DoorFleet.open({
        env: { COPILOT_API_URL: github.url, COPILOT_DEBUG_GITHUB_API_URL: github.url, COPILOT_OFFLINE: "" },
        config: { isolation, provider: null, session: { model: "gpt-5" }, identity: { github: { api: github.url } } },
      });
      const client = await at.connect(at.url, "gho_ofAlice");
      await client.createSession({ onPermissionRequest: () => ({ kind: "reject" as const }) });
      const ofRuntime = () => github.asked.filter(({ path }) => path !== "/user");
      await eventually("the runtime's question", () => ofRuntime().some(({ token }) => token === "gho_ofAlice"));
      expect(ofRuntime().every(({ token }) => token === "gho_ofAlice")).toBe(true);
    },
  );
});

describe("a user with a GitHub token, with an SDK at the front door,", () => {
  const OPTIONS = { onPermissionRequest: () => ({ kind: "reject" as const }) };

  it.each(["per-user", "shared"] as const)(
    "a user's turns on a %s server fail once GitHub revokes the token, and work again with a new token",
    async (isolation) => {
      await using github = await FakeGitHub.start();
      const clock = new TestClock();
      await using at = await DoorFleet.open({
        clock,
        env: github.env,
        config: { isolation, provider: null, session: { model: "gpt-5" }, identity: { github: { api: github.url } } },
      });
      const old = github.accept("gho_old", { login: "alice" });
      const session = await (await at.connect(at.url, old)).createSession(OPTIONS);
      const others = await at.connect(at.url, github.accept("gho_ofBob", { login: "bob" }));
      const ofBob = await others.createSession(OPTIONS);
      const answerTo = async (to: typeof session, prompt: string) => (await to.sendAndWait({ prompt }))?.data.content;
      expect(await answerTo(session, "one")).toBe("by gho_old: one");
      expect(await answerTo(ofBob, "one")).toBe("by gho_ofBob: one");
      expect(await answerTo(session, "two")).toBe("by gho_old: two");

      github.revoke(old);
      const before = github.asked.length;
      await expect(answerTo(session, "three")).rejects.toThrow("credentials may be expired");
      expect(github.asked.slice(before)).not.toEqual([]);
      for (const { token, status } of github.asked.slice(before))
        expect({ token, status }).toEqual({ token: old, status: 401 });
      expect(await answerTo(ofBob, "two")).toBe("by gho_ofBob: two");

      const again = await at.connect(at.url, github.accept("gho_new", { login: "alice" }));
      const resumed = await again.resumeSession(session.sessionId, OPTIONS);
      expect(await answerTo(resumed, "four")).toBe("by gho_new: four");
      const ended = () => at.events.filter(({ event }) => event === "token-refused");
      expect(ended()).toEqual([]);
      // The door caches GitHub's answer for five minutes, but must end the connection sooner.
      let leftMs = 60_000;
      await eventually("the end of the connection with the old token", async () => {
        if (leftMs > 0) await clock.advance(2_000);
        leftMs -= 2_000;
        return ended().length === 1;
      });
      expect(await answerTo(resumed, "five")).toBe("by gho_new: five");
    },
  );
});

describe("the front door without a sign-on", () => {
  it("refuses JSON Web Tokens and GitHub tokens if neither is configured, and logs the missing configuration key", async () => {
    await using at = await DoorFleet.open();
    for (const token of ["eyJhbGciOiJub25lIn0.e30.", "gho_x"]) {
      await expect(RawClient.as(at.url, token)).rejects.toThrow("AUTHENTICATION_FAILED");
    }
    expect(at.events.flatMap(({ event, detail }) => (event === "token-refused" ? [detail] : []))).toEqual([
      "It is a JSON Web Token, but identity.jwt is empty.",
      "It is a GitHub token, but identity.github.api is null.",
    ]);
  });
});
