import { afterEach, describe, expect, it, vi } from "vitest";
import { fetchJson } from "../../src/identity/fetch-json.js";
import { Issuer } from "../fixtures/identity/issuer.js";

const HINT = "; HTTPS_PROXY counts only with NODE_USE_ENV_PROXY=1 and Node.js 22.21, 24.5 or newer";

afterEach(() => {
  vi.unstubAllEnvs();
});

describe("an address that cannot be reached", () => {
  it.each([
    ["no proxy", {}, ""],
    ["a proxy that Node.js ignores", { HTTPS_PROXY: "http://127.0.0.1:2" }, HINT],
    ["the same in lower case", { https_proxy: "http://127.0.0.1:2" }, HINT],
    ["an empty variable", { HTTPS_PROXY: "" }, ""],
  ])("an unreachable address gets the right proxy hint for %s", async (_, variables: Record<string, string>, hint) => {
    for (const name of ["HTTPS_PROXY", "https_proxy", "NODE_USE_ENV_PROXY"]) vi.stubEnv(name, variables[name]);
    const issuer = await Issuer.open();
    await issuer[Symbol.asyncDispose]();
    const reason = async (url: string) => await fetchJson(url).catch(({ message }: Error) => message);
    expect(await reason(issuer.url.replace("http:", "https:"))).toBe(`it cannot be reached: ECONNREFUSED${hint}`);
    expect(await reason(issuer.url)).toBe("it cannot be reached: ECONNREFUSED");
  });
});
