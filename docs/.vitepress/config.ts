import { posix } from "node:path";
import { withMermaid } from "vitepress-plugin-mermaid";
import manifest from "../../package.json" with { type: "json" };

const repository = manifest.repository.url.replace(/^git\+/, "").replace(/\.git$/, "");
const page = (text: string, link: string) => ({ text, link });
const group = (text: string, items: ReturnType<typeof page>[]) => ({ text, items });

export default withMermaid({
  title: "copilotfleet",
  description: manifest.description,
  outDir: "../site",
  cacheDir: "node_modules/.cache/vitepress",
  cleanUrls: true,
  // GitHub shows the README of a folder as its page.
  srcExclude: ["node_modules/**"],
  rewrites: { "README.md": "index.md", "decisions/README.md": "decisions/index.md" },
  markdown: {
    config: (md) => {
      // Pages link to files beside docs/, such as ../examples. These links work on GitHub. On the site, they lead there.
      const render = md.renderer.rules.link_open;
      md.renderer.rules.link_open = (tokens, index, options, env, self) => {
        const token = tokens[index];
        const href = token?.attrGet("href") ?? "";
        if (/^\.\.?\//.test(href)) {
          const target = posix.join("docs", posix.dirname(env.relativePath), href);
          if (!target.startsWith("docs/")) token?.attrSet("href", `${repository}/tree/main/${target}`);
        }
        return render?.(tokens, index, options, env, self) ?? self.renderToken(tokens, index, options);
      };
    },
  },
  themeConfig: {
    nav: [page("Start", "/start"), page("Commands", "/commands"), page("Library", "/api/")],
    search: { provider: "local" },
    socialLinks: [{ icon: "github", link: repository }],
    outline: [2, 3],
    sidebar: [
      group("Start", [
        page("First steps", "/start"),
        page("GitHub's guide, sample by sample", "/guide"),
        page("Comparison", "/compare"),
      ]),
      group("Concepts", [page("How it works", "/concepts"), page("Sessions of many users", "/sessions")]),
      group("Guides", [
        page("The chat", "/chat"),
        page("Limits", "/limits"),
        page("The front door", "/front-door"),
        page("The HTTP API", "/http"),
        page("The console", "/console"),
        page("Identity", "/identity"),
        page("A user's data", "/data"),
        page("The library", "/library"),
      ]),
      group("Operate", [
        page("Keeping servers healthy", "/serve"),
        page("Deployment", "/deploy"),
        page("Usage", "/usage"),
        page("Monitoring", "/monitoring"),
        page("The audit log", "/events"),
        page("Runbooks", "/runbooks"),
      ]),
      group("Secure", [page("Security", "/security"), page("Threat model", "/threat-model")]),
      group("Scale", [
        page("State in Redis", "/redis"),
        page("Many hosts", "/hosts"),
        page("Two hosts on one machine", "/two-hosts"),
        page("Benchmarks", "/benchmarks"),
      ]),
      group("Reference", [
        page("Commands", "/commands"),
        page("Configuration", "/configuration"),
        page("Configuration keys", "/configuration-keys"),
        page("Error codes", "/errors"),
        page("Library reference", "/api/"),
      ]),
      group("Architecture", [
        page("Architecture", "/architecture"),
        page("Words", "/words"),
        page("Decision records", "/decisions/"),
      ]),
    ],
  },
});
