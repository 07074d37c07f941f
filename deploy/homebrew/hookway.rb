# The formula of a tap: brew install hookway/tap/hookway. A release fills in its version and checksum.
class Hookway < Formula
  desc "Receive webhooks on your own machine, through a relay of your own"
  homepage "https://github.com/hookway/hookway"
  url "#{homepage}/archive/refs/tags/v0.1.0.tar.gz"
  sha256 "0000000000000000000000000000000000000000000000000000000000000000"
  license any_of: ["MIT", "Apache-2.0"]
  head "#{homepage}.git", branch: "main"

  depends_on "cmake" => :build
  depends_on "rust" => :build

  def install
    { "tunnel-client" => "hookway", "relay-server" => "hookway-relay" }.each do |crate, program|
      system "cargo", "install", *std_cargo_args(path: crate)
      generate_completions_from_executable(bin/program, "completions")
      system bin/program, "manual", buildpath/"man"
    end
    man1.install Dir["man/*.1"]
    pkgshare.install "deploy/relay.example.toml"
  end

  # The client, by the account's own file (hookway config path).
  service do
    run [opt_bin/"hookway", "--color", "never"]
    keep_alive successful_exit: false
    log_path var/"log/hookway.log"
    error_log_path var/"log/hookway.log"
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/hookway version")
    assert_match "no domain is set", shell_output("#{bin}/hookway-relay run 2>&1", 7)
  end
end
