# The same as walpush.py, line for line, for a machine with perl: it starts in 3 ms where Python takes 15.
#
#   archive_command = 'perl -w walpush.pl push SOCKET "%p"'
#   restore_command = 'perl -w walpush.pl get SOCKET %f "%p"'
#
# Core operators only: a module would cost what is saved here (Socket alone 15 ms).

use strict;

my $CONNECT_S = 10;    # while flypg restarts; a failure would make PostgreSQL pause for a minute after three
my %ANSWER_S = (push => 60, get => 600);
my ($AF_UNIX, $SOCK_STREAM) = (1, 1);

# Send one line, return the line that comes back. Dies with what is in the way.
sub ask {
    my ($path, $line, $answer_s) = @_;
    local $SIG{PIPE} = 'IGNORE';
    local $SIG{ALRM} = sub { die "timed out\n" };
    my $deadline = time + $CONNECT_S;
    my $flypg;
    while (1) {
        alarm $answer_s;    # of one that is frozen the queue may be full: then it is connect that does not return
        socket($flypg, $AF_UNIX, $SOCK_STREAM, 0) or die "$!\n";
        last if connect($flypg, pack('Sa*x', $AF_UNIX, $path));
        my $why = "$!\n";
        close $flypg;
        die $why if time > $deadline;
        select undef, undef, undef, 0.1;
    }
    defined syswrite($flypg, $line) or die "$!\n";    # a few hundred bytes fit into any socket's buffer
    my $answer = '';
    while ($answer !~ /\n\z/) {
        my $count = sysread($flypg, $answer, 4096, length $answer);
        defined $count or die "$!\n";
        $count or die "flypg hung up\n";
    }
    alarm 0;
    chomp $answer;
    return $answer;
}

my ($verb, $path) = @ARGV;
my $failed = defined $verb && $verb eq 'get' ? 254 : 1;    # a mere 1 would make PostgreSQL believe that the WAL ends here
my $code = $failed;
eval {
    @ARGV >= 3 or die "three arguments or more are expected\n";
    my $file = $ARGV[-1];
    $file = readlink('/proc/self/cwd') . "/$file" unless $file =~ m{^/};
    my @fields = $verb eq 'push' ? ($verb, $file) : ($verb, $ARGV[2], $file);
    my $answer = eval { ask($path, join("\t", @fields) . "\n", $ANSWER_S{$verb}) };
    if (!defined $answer) {
        chomp(my $why = $@);
        $answer = "stop flypg does not answer at $path: $why";
    }
    my ($word, $message) = $answer =~ /^(\S*) ?(.*)/;
    if ($word eq 'ok') {
        $code = 0;
    }
    else {
        print STDERR "flypg: $message\n" if length $message;
        $code = 1 if $word eq 'no';
        $code = 126 if $word eq 'end' && $verb eq 'push';
    }
    1;
} or print STDERR "flypg: $@";
exit $code;
